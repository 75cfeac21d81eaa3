"""The regression loss against its closed form."""

import pytest
import torch

from onestep.objectives.regression import regression_loss


def test_value_and_gradient() -> None:
    """Differences 1, 2, 3, 4 and constant -2 over four dimensions: losses 30/4 and 16/4, gradients 2/4 of them."""
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [3.0, 3.0, 3.0, 3.0]]).reshape(2, 1, 2, 2).requires_grad_()
    target = torch.tensor([0.0, 5.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    losses = regression_loss(x, target)
    assert losses.tolist() == [7.5, 4.0]
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    assert gradient.flatten(1).tolist() == [[0.5, 1.0, 1.5, 2.0], [-1.0, -1.0, -1.0, -1.0]]


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x_teacher .* x_generated, \(3, 1, 2, 2\), got \(1, 1, 2, 2\)"):
        regression_loss(torch.zeros(3, 1, 2, 2), torch.zeros(1, 1, 2, 2))

"""The gradient penalties against closed forms."""

import pytest
import torch
from torch import Tensor

from onestep.objectives.gradient_penalty import ExactPenalty, FiniteDifferencePenalty, GradientPenalty

X, TARGET = torch.randn(2, 1, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
targets = pytest.mark.parametrize("target", [None, TARGET])


def values(penalty: GradientPenalty, target: Tensor | None, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of log ratio a |x|^2 / 2, whose gradient is a x: the mean penalty, its derivative by a; |a x - target|^2, its."""
    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(count, *X.shape[1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, wanted = X.expand_as(direction), None if target is None else target.expand_as(direction)
    mean = penalty(lambda x: a * x.square().flatten(1).sum(1) / 2, x, direction, wanted).mean()
    exact = (a * X - (0 if target is None else target)).square().sum()
    derivatives = [torch.autograd.grad(one, a)[0] for one in (mean, exact)]
    return mean.detach(), derivatives[0], exact.detach(), derivatives[1]


@targets
def test_the_exact_penalty(target: Tensor | None) -> None:
    penalty, derivative, exact, its_derivative = values(ExactPenalty(1.0, target is not None), target, 2)
    torch.testing.assert_close(penalty, exact)
    torch.testing.assert_close(derivative, its_derivative)


@targets
def test_finite_differences_have_its_mean(target: Tensor | None) -> None:
    """The squared projection of an offset on a normal direction has the standard deviation sqrt(2) |offset|^2."""
    penalty = FiniteDifferencePenalty(1.0, target is not None, step=1e-3)
    mean, derivative, exact, its_derivative = values(penalty, target, 100_000)
    assert (mean / exact - 1).abs() < 3 * (2 / 100_000) ** 0.5
    assert (derivative - its_derivative).abs() < 0.03 * (X.square().sum() * exact).sqrt()


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_weights_are_positive(weight: float) -> None:
    with pytest.raises(ValueError, match="weight=.*: expected"):
        ExactPenalty(weight, False)

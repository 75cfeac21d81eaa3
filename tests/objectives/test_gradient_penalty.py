"""The gradient penalties against closed forms."""

import pytest
import torch
from torch import Tensor

from onestep.objectives.gradient_penalty import R1, FiniteDifferenceR1, GradientPenalty


def values(penalty: GradientPenalty, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of log ratio a |x|^2 / 2, whose gradient is a x: the mean penalty, |a x|^2, and the penalty's derivative by a."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 3, 3, generator=random, dtype=torch.float64)
    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(count, 2, 3, 3, generator=random, dtype=torch.float64)
    mean = penalty(lambda x: a * x.square().flatten(1).sum(1) / 2, x.expand_as(direction), direction).mean()
    (derivative,) = torch.autograd.grad(mean, a)
    return mean.detach(), (a * x).square().sum().detach(), derivative


def test_r1_is_exact() -> None:
    penalty, expected, derivative = values(R1(weight=1.0), 2)
    torch.testing.assert_close(penalty, expected)
    torch.testing.assert_close(derivative, 2 * expected / 1.5)


def test_finite_differences_have_the_mean_of_r1() -> None:
    """The squared projection of a gradient on a normal direction has the standard deviation sqrt(2) |gradient|^2."""
    penalty, expected, derivative = values(FiniteDifferenceR1(weight=1.0, step=1e-3), 100_000)
    assert (penalty / expected - 1).abs() < 3 * (2 / 100_000) ** 0.5
    torch.testing.assert_close(derivative, 2 * penalty / 1.5)


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_weights_are_positive(weight: float) -> None:
    with pytest.raises(ValueError, match="weight=.*: expected"):
        R1(weight)

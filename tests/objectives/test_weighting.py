"""The weighting in sigma, per sample."""

import pytest
import torch

from onestep.objectives.base import Predictions
from onestep.objectives.weighting import DMDWeighting, PowerWeighting, UnitWeighting, Weighting, weight_scale

SIGMA = torch.tensor([0.5, 2.0, 3.0])


def predictions(x0_teacher: torch.Tensor) -> Predictions:
    x = torch.zeros(3, 1, 2, 2, requires_grad=True)
    return Predictions(x_generated=x, x_sigma=x, sigma=SIGMA, x0_teacher=x0_teacher)


def test_unit_weighting() -> None:
    weighting: Weighting = UnitWeighting()
    assert weighting(predictions(torch.ones(3, 1, 2, 2)), power=2).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("exponent", "expected"), [(-1.0, [2, 1 / 2, 1 / 3]), (3.0, [1 / 8, 8, 27])])
def test_power_weighting_is_of_its_exponent_alone(exponent: float, expected: list[float]) -> None:
    weight = PowerWeighting(exponent)(predictions(torch.ones(3, 1, 2, 2)), power=2)
    assert weight.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("power", [2, 4])
def test_dmd_weighting_is_per_sample_over_the_sum_of_distances(power: int) -> None:
    x0_teacher = torch.tensor([1.0, -2.0, 0.25]).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    weighting: Weighting = DMDWeighting()
    weight = weighting(predictions(x0_teacher), power)
    torch.testing.assert_close(weight, SIGMA**power / torch.tensor([4.0, 8.0, 1.0]))
    assert not weight.requires_grad


def test_dmd_weighting_is_finite_where_the_teacher_agrees() -> None:
    weight = DMDWeighting()(predictions(torch.zeros(3, 1, 2, 2)), power=2)
    torch.testing.assert_close(weight, SIGMA**2 / 4e-5)


def test_weight_scale_is_the_mean_weight_detached() -> None:
    weight = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    assert weight_scale(weight, normalize=False).item() == 1
    scale = weight_scale(weight, normalize=True)
    assert scale.item() == 3 and not scale.requires_grad and scale.dtype == torch.float32

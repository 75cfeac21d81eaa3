"""Measures of an estimated density ratio against integrals over known Gaussians."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

from onestep.objectives.ratio_quality import effective_fraction, jensen_shannon_bound, kl_bounds, ratio_means
from onestep.seeding import seeded_rng

COUNT = 200_000
MEAN, STD = 0.6, 0.8  # of q; p is the standard normal distribution


def log_ratio(x: Tensor) -> Tensor:
    """log p/q, exactly."""
    return ((x - MEAN) / STD) ** 2 / 2 - x**2 / 2 + math.log(STD)


def samples(seed: int) -> tuple[Tensor, Tensor]:
    """Independent samples of p and q."""
    noise = torch.randn(2, COUNT, generator=seeded_rng(seed), dtype=torch.float64)
    return noise[0], MEAN + STD * noise[1]


def expectation_of(function: object, mean: float, std: float) -> float:
    value, _ = quad(lambda x: norm.pdf(x, mean, std) * function(x), -12, 12)  # type: ignore[operator]
    return float(value)


def test_bounds_by_the_exact_ratio_are_the_divergences() -> None:
    real, generated = (log_ratio(x) for x in samples(0))

    def log_r(x: float) -> float:
        return float(norm.logpdf(x) - norm.logpdf(x, MEAN, STD))

    forward, reverse = expectation_of(log_r, 0, 1), -expectation_of(log_r, MEAN, STD)
    of_p = expectation_of(lambda x: math.log(2 / (1 + math.exp(-log_r(x)))), 0, 1)
    of_q = expectation_of(lambda x: math.log(2 / (1 + math.exp(log_r(x)))), MEAN, STD)
    assert [float(value) for value in kl_bounds(real, generated)] == pytest.approx([forward, reverse], abs=0.01)
    assert float(jensen_shannon_bound(real, generated)) == pytest.approx((of_p + of_q) / 2, abs=0.002)
    assert [float(value) for value in ratio_means(real, generated)] == pytest.approx([1, 1], abs=0.02)


@pytest.mark.parametrize("scale, offset", [(0.3, 0.0), (2.0, 0.0), (1.0, 0.7), (0.0, 0.0)])
def test_other_estimates_give_lower_bounds(scale: float, offset: float) -> None:
    """An offset changes no bound of KL, and shows in the means of the ratio."""
    exact = [log_ratio(x) for x in samples(1)]
    estimate = [scale * values + offset for values in exact]
    assert jensen_shannon_bound(*estimate) < jensen_shannon_bound(*exact) - 0.005
    for bound, truth in zip(kl_bounds(*estimate), kl_bounds(*exact), strict=True):
        assert bound < truth - 0.005 if scale != 1 else float(bound) == pytest.approx(float(truth))
    if offset:
        means, of_exact = ratio_means(*estimate), ratio_means(*exact)
        assert float(means[0] / of_exact[0]) == pytest.approx(math.exp(0.7))
        assert float(means[1] / of_exact[1]) == pytest.approx(math.exp(-0.7))


@pytest.mark.parametrize("size", [20.0, 2000.0])
def test_a_confident_estimate_neither_overflows_nor_hides(size: float) -> None:
    """Right of every sample, log r = size bounds Jensen-Shannon by log 2; wrong of every one, the loss is the size."""
    sure = torch.full((5,), size)
    assert float(jensen_shannon_bound(sure, -sure)) == pytest.approx(math.log(2))
    assert float(jensen_shannon_bound(-sure, sure)) == pytest.approx(math.log(2) - size)
    assert [float(value) for value in kl_bounds(sure, -sure)] == pytest.approx([2 * size, 2 * size])


def test_effective_samples() -> None:
    """Weights exp(N(0, 1)) have E[h]^2 / E[h^2] = 1/e."""
    normal = torch.randn(COUNT, generator=seeded_rng(2), dtype=torch.float64)
    assert float(effective_fraction(normal.exp())) == pytest.approx(math.exp(-1), rel=0.05)
    assert float(effective_fraction(torch.full((8,), 1e30))) == 1
    assert float(effective_fraction(torch.tensor([0.0, 0.0, 0.0, 3.0]))) == 0.25
    assert math.isnan(effective_fraction(torch.zeros(3)))

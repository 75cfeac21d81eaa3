"""Heun's sampler on Gaussian data, whose denoiser and probability flow are known exactly."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from onestep.denoiser import NO_CONDITION, Condition
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.samplers import EulerSampler, HeunSampler

MEAN, STD, SIGMA_MIN, SIGMA_MAX = 0.3, 0.5, 0.002, 80.0


class GaussianDenoiser:
    """The exact denoiser of N(MEAN, STD^2), in float64, that counts its calls."""

    def __init__(self) -> None:
        self.levels: list[float] = []

    def __call__(self, x_sigma: Tensor, sigma: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        self.levels.append(sigma[0].item())
        variance = sigma.double().square().reshape(-1, 1, 1, 1)
        return (STD**2 * x_sigma.double() + variance * MEAN) / (STD**2 + variance)


def sample(latents: Tensor, steps: int, **churn: float) -> Tensor:
    return HeunSampler(steps, SIGMA_MIN, SIGMA_MAX, **churn)(GaussianDenoiser(), latents)


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(8, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def flow(latents: Tensor) -> Tensor:
    """Where the probability flow from ``SIGMA_MAX * latents`` ends: it keeps the standardised value."""
    return MEAN + (SIGMA_MAX * latents - MEAN) * STD / math.sqrt(STD**2 + SIGMA_MAX**2)


def test_many_steps_follow_the_probability_flow(latents: Tensor) -> None:
    torch.testing.assert_close(sample(latents, steps=512), flow(latents), rtol=0, atol=1e-4)


def test_second_order(latents: Tensor) -> None:
    """Twice the steps, a quarter of the error (an Euler sampler halves it)."""
    errors = [(sample(latents, steps) - flow(latents)).abs().max().item() for steps in (32, 64, 128)]
    assert errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.5)
    assert errors[1] / errors[2] == pytest.approx(4, abs=0.5)


def test_the_state_is_float64(latents: Tensor) -> None:
    """Equal to a computation in float64 whose denoiser alone sees float32."""
    sampler, denoiser = HeunSampler(8, SIGMA_MIN, SIGMA_MAX), GaussianDenoiser()

    def slope(x: Tensor, sigma: float) -> Tensor:
        return (x - denoiser(x.float(), torch.full((len(x),), sigma))) / sigma

    x, sigmas = SIGMA_MAX * latents, sampler.sigmas(denoiser)
    for sigma, lower in pairwise(sigmas):
        here = slope(x, sigma)
        there = slope(x + (lower - sigma) * here, lower) if lower else here
        x = x + (lower - sigma) * (here + there) / 2
    torch.testing.assert_close(sampler(GaussianDenoiser(), latents), x, rtol=0, atol=1e-12)


def test_churn_keeps_the_law() -> None:
    """131,072 values: the standard error of their standard deviation is 0.2 %, that of their mean 0.0014."""
    latents = torch.randn(128, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    images = sample(latents, 256, churn=20.0)
    assert images.std().item() == pytest.approx(STD, rel=0.008)
    assert images.mean().item() == pytest.approx(MEAN, abs=0.0056)


def test_churn_without_its_noise_collapses_the_law(latents: Tensor) -> None:
    """That is, the noise is what keeps it."""
    assert sample(latents, 256, churn=20.0, churn_noise=0.0).std() < 0.001


def test_churn_outside_its_levels_changes_nothing(latents: Tensor) -> None:
    plain = sample(latents, 8)
    assert torch.equal(sample(latents, 8, churn=10.0, churn_min=100.0), plain)
    assert torch.equal(sample(latents, 8, churn=10.0, churn_max=0.001), plain)


def test_churn_raises_the_level_by_its_share() -> None:
    """churn / steps, at most sqrt(2) - 1 (algorithm 2, line 5)."""
    for churn, factor in ((0.8, 1.1), (100.0, math.sqrt(2))):
        denoiser = GaussianDenoiser()
        HeunSampler(8, SIGMA_MIN, SIGMA_MAX, churn=churn)(denoiser, torch.zeros(1, 1, 1, 1))
        assert denoiser.levels[0] == pytest.approx(SIGMA_MAX * factor, rel=1e-6)


def test_churn_depends_on_the_own_latent_alone(latents: Tensor) -> None:
    together = sample(latents, 8, churn=5.0)
    alone = torch.cat([sample(latent[None], 8, churn=5.0) for latent in latents.flip(0)]).flip(0)
    assert torch.equal(together, alone)
    # Almost equal latents give almost equal deterministic images, but each its own churn.
    nearby = latents + 1e-9
    assert (sample(nearby, 8) - sample(latents, 8)).abs().max() < 1e-6
    assert (sample(nearby, 8, churn=5.0) - together).abs().mean() > 0.05


@pytest.mark.parametrize("steps", [2, 5, 18])
@pytest.mark.parametrize("churn", [0.0, 3.0])
def test_network_evaluations_are_the_calls(steps: int, churn: float, latents: Tensor) -> None:
    sampler, denoiser = HeunSampler(steps, SIGMA_MIN, SIGMA_MAX, churn=churn), GaussianDenoiser()
    sampler(denoiser, latents)
    assert len(denoiser.levels) == sampler.network_evaluations == 2 * steps - 1


def test_condition_reaches_the_denoiser_and_dtype_stays() -> None:
    def denoise(x_sigma: Tensor, sigma: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        assert x_sigma.dtype == sigma.dtype == torch.float32
        return condition["labels"].reshape(-1, 1, 1, 1).expand_as(x_sigma)

    condition = {"labels": torch.tensor([[0.25], [-0.5]])}
    images = HeunSampler(4, SIGMA_MIN, SIGMA_MAX)(denoise, torch.randn(2, 1, 3, 3), condition)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([0.25, -0.5]), rtol=0, atol=1e-6)


def test_levels_that_are_not_ascending() -> None:
    with pytest.raises(ValueError, match="sigma_min=90.0, sigma_max=80.0: expected 0 < sigma_min < sigma_max"):
        HeunSampler(8, 90.0, 80.0)


def test_euler_follows_the_networks_own_levels() -> None:
    """Two steps of a network that is its skip connection alone, along EDM's levels from sigma_max."""
    denoiser = EDMDenoiser((2, 1, 1), sigma_data=1.0, sigma_min=0.1, sigma_max=4.0, architecture="Affine")
    latents = torch.tensor([[[[1.0]], [[-2.0]]]])
    images = EulerSampler(2)(denoiser, latents)
    x = 4 * latents
    for sigma, sigma_next in ((4.0, 0.1), (0.1, 0.0)):
        x0 = x / (1 + sigma**2)  # an affine network starts as zero, which leaves the skip connection
        x = x0 + sigma_next / sigma * (x - x0)
    torch.testing.assert_close(images, x)
    assert EulerSampler(7).network_evaluations == 7


def test_euler_needs_a_network() -> None:
    with pytest.raises(ValueError, match="this teacher has no noise schedule; use sampler=heun"):
        EulerSampler(2)(GaussianDenoiser(), torch.zeros(1, 1, 1, 1))

"""Residual shifting is the package's noise in other coordinates: ResShift's formulas and SinSR's, exactly."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from onestep.config import instantiate
from onestep.denoiser import Condition
from onestep.models.base import DenoiserNetwork
from onestep.noise import SigmaDistribution, add_noise, expand_like
from onestep.samplers import ResShiftSampler
from tests.helpers.configs import configure

KAPPA = 2.0


class GaussianRestorer(DenoiserNetwork):
    """The exact denoiser of x ~ N(0.6 y, 0.3^2), in float64, whose sampler starts at y."""

    image_shape, sigma_min, sigma_max = (1, 4, 4), 0.01, 100.0
    condition_keys = ("image",)

    def denoise(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        variance = expand_like(sigma.double() ** 2, x_sigma)
        return (0.09 * x_sigma.double() + variance * 0.6 * condition["image"].double()) / (0.09 + variance)

    def sampling_mean(self, condition: Condition) -> Tensor:
        return condition["image"]


def schedule(steps: int, smallest_noise: float) -> list[float]:
    """ResShift's ``eta_t`` for t from 1 to ``steps``, as its code has them."""
    first, last, power = min(smallest_noise / KAPPA, smallest_noise, math.sqrt(0.001)), 0.99, 0.3
    base = math.exp(math.log(last / first) / (steps - 1))
    places = [t / (steps - 1) for t in range(steps)]
    return [(first * base ** (place**power * (steps - 1))) ** 2 for place in places]


def sampler(*overrides: str) -> ResShiftSampler:
    made: ResShiftSampler = instantiate(configure("train", "sampler=res_shift", *overrides).sampler)
    return made


@pytest.mark.parametrize(
    ("overrides", "smallest_noise", "published"),
    [
        ((), 0.04, [0.04, 0.238, 0.364, 0.494, 0.637, 0.801, 0.994, 1.23, 1.53, 1.94, 2.54, 3.50, 5.33, 10.4, 99.5]),
        (("sampler.steps=4", "sampler.first=0.0316227766016838"), 0.2, [0.063, 0.877, 2.41, 99.5]),
    ],
)
def test_the_levels(overrides: tuple[str, ...], smallest_noise: float, published: list[float]) -> None:
    *levels, end = sampler(*overrides).sigmas(GaussianRestorer())
    etas = schedule(len(levels), smallest_noise)
    exact = [KAPPA * math.sqrt(eta) / (1 - eta) for eta in etas]
    assert end == 0 and levels[::-1] == pytest.approx(exact, rel=1e-12)
    assert levels[::-1] == pytest.approx(published, rel=6e-3)


def test_the_levels_of_a_training() -> None:
    """The distribution's quantiles at equal distances are the levels of the sampler, up to the teacher's highest."""
    config, network = (
        configure("train", "sigma=res_shift", "sampler=res_shift", "sampler.last=null"),
        GaussianRestorer(),
    )
    lowest = KAPPA * 0.02 / (1 - 0.02**2)
    distribution: SigmaDistribution = instantiate(config.sigma, sigma_min=lowest, sigma_max=100.0)
    *levels, _ = instantiate(config.sampler).sigmas(network)
    assert levels[0] == pytest.approx(100.0, rel=1e-12)
    quantiles = distribution.quantile(torch.linspace(1, 0, 15, dtype=torch.float64))
    assert quantiles.tolist() == pytest.approx(levels, rel=1e-12)


def test_the_noised_image() -> None:
    x0, y, noise = torch.randn(3, 8, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    for eta in schedule(15, 0.04):
        x_t = (1 - eta) * x0 + eta * y + KAPPA * math.sqrt(eta) * noise
        sigma = torch.full((8,), KAPPA * math.sqrt(eta) / (1 - eta), dtype=torch.float64)
        torch.testing.assert_close((x_t - eta * y) / (1 - eta), add_noise(x0, noise, sigma), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [4, 15])
def test_sinsr_samples_as_euler_does(steps: int) -> None:
    """``x_{t-1} = k x0 + m x_t + j y`` from ``x_T = y + kappa sqrt(eta_T) z``."""
    z, y = torch.randn(2, 8, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).unbind()
    network, ours = GaussianRestorer(), sampler(f"sampler.steps={steps}")
    etas = [*reversed(schedule(steps, 0.04)), 0.0]
    x = y + KAPPA * math.sqrt(etas[0]) * z
    for eta, after in pairwise(etas):
        level = torch.full((8,), KAPPA * math.sqrt(eta) / (1 - eta))
        x0 = network(((x - eta * y) / (1 - eta)).float(), level, {"image": y})
        m, j = math.sqrt(after / eta), after - math.sqrt(after * eta)
        x = (1 - after + math.sqrt(eta * after) - m) * x0 + m * x + j * y
    torch.testing.assert_close(ours(network, z, {"image": y}), x, rtol=0, atol=1e-12)


def test_resshift_samples_its_posteriors() -> None:
    """``N((eta'/eta) x_t + (alpha/eta) x0, kappa^2 (eta'/eta) alpha)`` with ``alpha = eta - eta'``."""
    z, y, *noises = torch.randn(6, 8, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).unbind()
    network, ours = GaussianRestorer(), sampler("sampler.steps=5", "sampler.stochastic=true")
    etas = [*reversed(schedule(5, 0.04)), 0.0]
    x = y + KAPPA * math.sqrt(etas[0]) * z
    for number, (eta, after) in enumerate(pairwise(etas)):
        level = torch.full((8,), KAPPA * math.sqrt(eta) / (1 - eta))
        x0 = network(((x - eta * y) / (1 - eta)).float(), level, {"image": y})
        spread = KAPPA * math.sqrt(after / eta * (eta - after))
        x = after / eta * x + (eta - after) / eta * x0 + (spread * noises[number] if after else 0)
    torch.testing.assert_close(ours(network, z, {"image": y}, iter(noises)), x, rtol=0, atol=1e-12)


def moments(levels: list[float], y: float, stochastic: bool) -> tuple[float, float]:
    """Mean and variance of a sample of x ~ N(0.6 y, 0.09): with the exact denoiser a step is linear, and x Gaussian."""
    offset, variance = 0.4 * y, levels[0] ** 2
    for sigma, after in pairwise(levels):
        gain, share = 0.09 / (0.09 + sigma**2), 1.0
        if stochastic:
            root, root_after = ((math.hypot(KAPPA, 2 * s) - KAPPA) / (2 * s) if s else 0.0 for s in (sigma, after))
            share = (root_after / root) ** 2
        kept = gain + (1 - gain) * math.sqrt(share) * after / sigma
        offset, variance = kept * offset, kept**2 * variance + (1 - share) * after**2
    return 0.6 * y + offset, variance


@pytest.mark.parametrize("stochastic", [True, False])
def test_the_law_of_samples(stochastic: bool) -> None:
    ours, network = sampler("sampler.last=0.9", f"sampler.stochastic={str(stochastic).lower()}"), GaussianRestorer()
    z, *noises = torch.randn(15, 4096, 1, 4, 4, generator=torch.Generator().manual_seed(3)).unbind()
    samples = ours(network, z, {"image": torch.full((4096, 1, 4, 4), 0.8)}, iter(noises))
    mean, variance = moments(ours.sigmas(network), 0.8, stochastic)
    assert float(samples.mean()) == pytest.approx(mean, abs=0.005)
    assert float(samples.var()) == pytest.approx(variance, rel=0.02)
    # Many steps reach p(x | y).
    many = sampler("sampler.steps=9999", "sampler.first=0.005").sigmas(network)
    mean, variance = moments(many, 0.8, stochastic)
    assert mean == pytest.approx(0.48, abs=2e-3) and variance == pytest.approx(0.09, rel=0.02)


def test_levels_that_a_network_does_not_know() -> None:
    network = GaussianRestorer()
    network.sigma_max = 10.0
    message = "sampler.last=0.99: the highest level is 99.5, and this network was trained up to 10: set sampler.last="
    with pytest.raises(ValueError, match=message) as caught:
        sampler().sigmas(network)
    fitting = str(caught.value).split("sampler.last=")[-1].split()[0]
    assert 9.9 < sampler(f"sampler.last={fitting}").sigmas(network)[0] <= 10
    network.sigma_max = 0.02
    with pytest.raises(ValueError, match="sampler.last=null: the highest level of this denoiser is 0.02: set it above"):
        sampler("sampler.last=null").sigmas(network)
    with pytest.raises(ValueError, match="sampler.first=0.5, sampler.last=0.4: expected first < last < 1"):
        ResShiftSampler(4, 2.0, 0.5, 0.4, 0.3)

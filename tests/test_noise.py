"""The noise convention and the distributions of sigma."""

import math
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from scipy import integrate, stats

from onestep.config import instantiate
from onestep.noise import (
    AnnealedSigma,
    KarrasSigma,
    LogNormalSigma,
    LogUniformSigma,
    ResShiftSigma,
    ShiftedSigma,
    SigmaDistribution,
    add_noise,
    expand_like,
    karras_sigmas,
    per_sample_sum,
)
from onestep.step_intervals import StepIntervals
from tests.helpers.configs import configure

DISTRIBUTIONS = {
    "log_normal": (LogNormalSigma(-1.2, 1.2), stats.lognorm(s=1.2, scale=math.exp(-1.2))),
    "log_uniform": (LogUniformSigma(0.02, 80.0), stats.loguniform(0.02, 80.0)),
    "karras": (KarrasSigma(0.02, 80.0), None),
    "res_shift": (ResShiftSigma(0.04, 99.5), None),
    "shifted": (ShiftedSigma(0.0204, 49.0, 3.0), None),
    "shifted to t = 1": (ShiftedSigma(1e-3, 2.0**30, 3.0), None),
    "annealed": (AnnealedSigma(KarrasSigma, 0.02, 80.0, 5.0, 0.0, 1.0).after(0.5), None),
    "step_intervals": (StepIntervals(KarrasSigma, 0.02, 80.0, [5.0, 0.4]), None),
    "one of step_intervals": (StepIntervals(KarrasSigma, 0.02, 80.0, [5.0, 0.4]).at_step(1), None),
}
distributions = pytest.mark.parametrize(
    "distribution", [distribution for distribution, _ in DISTRIBUTIONS.values()], ids=DISTRIBUTIONS
)


def test_shapes_and_values_of_noising() -> None:
    x0, noise, sigma = torch.ones(2, 3, 4, 5), torch.full((2, 3, 4, 5), 2.0), torch.tensor([0.5, 10.0])
    assert expand_like(sigma, x0).shape == (2, 1, 1, 1)
    noised = add_noise(x0, noise, sigma)
    assert (noised[0] == 2).all() and (noised[1] == 21).all()
    assert per_sample_sum(noised).tolist() == [120, 1260]


def test_karras_sigmas() -> None:
    """EDM's 18 steps: given ends, decreasing, and the second level by eq. 5."""
    sigmas = karras_sigmas(18, 0.002, 80.0)
    assert sigmas.dtype == torch.float64 and (sigmas.diff() < 0).all()
    second = (80 ** (1 / 7) + 1 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert sigmas[[0, 1, -1]].tolist() == pytest.approx([80, second, 0.002], rel=1e-12)
    assert karras_sigmas(3, 1.0, 8.0, rho=3).tolist() == pytest.approx([8, 1.5**3, 1], rel=1e-12)


@distributions
def test_cdf_undoes_quantile(distribution: SigmaDistribution) -> None:
    u = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    torch.testing.assert_close(distribution.cdf(distribution.quantile(u)), u, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["log_normal", "log_uniform"])
def test_cdf_against_scipy(name: str) -> None:
    distribution, reference = DISTRIBUTIONS[name]
    assert reference is not None
    sigma = torch.tensor([0.021, 0.1, 0.3, 1.0, 10.0, 79.0], dtype=torch.float64)
    torch.testing.assert_close(
        distribution.cdf(sigma), torch.tensor(reference.cdf(sigma.numpy())), rtol=1e-6, atol=1e-7
    )


def test_karras_law_is_the_limit_of_the_karras_grid() -> None:
    grid = karras_sigmas(1001, 0.02, 80.0)
    distribution = KarrasSigma(0.02, 80.0)
    torch.testing.assert_close(distribution.quantile(torch.linspace(1, 0, 1001, dtype=torch.float64)), grid)


@distributions
def test_samples_follow_the_distribution(distribution: SigmaDistribution) -> None:
    sigma = distribution.sample(20_000, torch.Generator().manual_seed(0))
    assert sigma.shape == (20_000,) and sigma.dtype == torch.float32 and (sigma > 0).all()
    assert stats.kstest(distribution.cdf(sigma).numpy(), "uniform").statistic < 1.63 / math.sqrt(
        20_000
    )  # the 1 % level
    assert torch.equal(sigma, distribution.sample(20_000, torch.Generator().manual_seed(0)))


@distributions
def test_ends_of_the_uniform_give_finite_positive_levels(distribution: SigmaDistribution) -> None:
    ends = distribution.quantile(torch.tensor([0.0, 1.0]))
    assert (ends > 0).all() and ends.isfinite().all()


def test_shifted_levels_are_those_of_diffusers() -> None:
    """Equal steps of t between the ends, shifted by SD3's scheduler; its ends are ours where they are not cut."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(0.9, 0.1, 9))
    t = scheduler.sigmas[:-1].double()
    # Their ends are sigma = shift t / (1 - t).
    levels = ShiftedSigma(3 * 0.1 / 0.9, 3 * 0.9 / 0.1, 3.0).quantile(torch.linspace(1, 0, 9, dtype=torch.float64))
    torch.testing.assert_close(levels, t / (1 - t), rtol=1e-5, atol=0)


def test_density_of_the_shifted_time() -> None:
    """The density of t' = s t / (1 + (s - 1) t) for uniform t is s / (s - (s - 1) t')^2."""
    shift, t = 3.0, torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    distribution = ShiftedSigma(1e-9, 1e9, shift)
    around = [distribution.cdf((t + step) / (1 - t - step)) for step in (1e-5, -1e-5)]
    torch.testing.assert_close(
        (around[0] - around[1]) / 2e-5, shift / (shift - (shift - 1) * t) ** 2, rtol=1e-6, atol=0
    )


def test_logit_normal_time() -> None:
    """SD3's density of t (arXiv 2403.03206, eq. 19), integrated by scipy, for the location 0 and the scale 1."""
    distribution = instantiate(configure("train", "sigma=logit_normal").sigma)

    def density(t: float) -> float:
        return math.exp(-0.5 * math.log(t / (1 - t)) ** 2) / math.sqrt(2 * math.pi) / (t * (1 - t))

    for t in (0.1, 0.5, 0.7, 0.95):
        expected, _ = integrate.quad(density, 0, t)
        assert float(distribution.cdf(torch.tensor(t / (1 - t), dtype=torch.float64))) == pytest.approx(
            expected, rel=1e-6
        )


def test_levels_outside_a_bounded_law_have_cdf_zero_or_one() -> None:
    for distribution in (LogUniformSigma(0.02, 80.0), KarrasSigma(0.02, 80.0), ShiftedSigma(0.02, 80.0, 3.0)):
        assert distribution.cdf(torch.tensor([0.001, 100.0])).tolist() == [0, 1]


@pytest.mark.parametrize("distribution", [LogUniformSigma, KarrasSigma])
@pytest.mark.parametrize("sigma_min, sigma_max", [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_bad_ranges_are_refused(distribution: type, sigma_min: float, sigma_max: float) -> None:
    with pytest.raises(ValueError, match=f"sigma_min={sigma_min}"):
        distribution(sigma_min, sigma_max)


def test_bad_log_std_is_refused() -> None:
    with pytest.raises(ValueError, match="log_std=0.0: expected a number above 0 and at most 10"):
        LogNormalSigma(0.0, 0.0)


@pytest.mark.parametrize(
    "distribution, root", [(KarrasSigma, lambda sigma: sigma ** (1 / 7)), (LogUniformSigma, math.log)]
)
def test_the_highest_level_falls(distribution: type, root: Callable[[float], float]) -> None:
    """Linearly in the root or logarithm that is uniform, between a fifth and three fifths of the training."""
    annealed = AnnealedSigma(distribution, 0.02, 80.0, 5.0, begins=0.2, ends=0.6)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    levels = {part: annealed.after(part).quantile(ends).tolist() for part in (0.0, 0.2, 0.3, 0.5, 0.6, 1.0)}
    assert [lowest for lowest, _ in levels.values()] == pytest.approx([0.02] * 6, rel=1e-9)
    first, last = root(80.0), root(5.0)
    expected = [first, first, 0.75 * first + 0.25 * last, 0.25 * first + 0.75 * last, last, last]
    assert [root(highest) for _, highest in levels.values()] == pytest.approx(expected, rel=1e-9)
    assert torch.equal(annealed.quantile(ends), distribution(0.02, 80.0).quantile(ends))  # the object is of the start
    assert annealed.after(0.4).cdf(torch.tensor([80.0])) == 1


@pytest.mark.parametrize("distribution", [KarrasSigma, LogUniformSigma])
def test_each_step_has_the_levels_down_to_the_next(distribution: type) -> None:
    """Its part of the whole law, restricted by the whole's own probabilities; the mixture has a third of each step."""
    whole, ends = distribution(0.02, 80.0), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    law = StepIntervals(distribution, 0.02, 80.0, [5.0, 0.4])
    for step, (high, low) in enumerate([(80.0, 5.0), (5.0, 0.4), (0.4, 0.02)]):
        of_step = law.at_step(step)
        middle = whole.quantile(whole.cdf(torch.tensor([low, high], dtype=torch.float64)).mean()).item()
        levels = of_step.quantile(ends)
        assert levels.tolist() == pytest.approx([low, middle, high], rel=1e-9)
        torch.testing.assert_close(of_step.cdf(levels), ends, rtol=0, atol=1e-9)
        torch.testing.assert_close(law.cdf(levels), (2 - step + ends) / 3, rtol=0, atol=1e-9)
        torch.testing.assert_close(law.quantile((2 - step + ends) / 3)[1], levels[1])
    drawn = law.at_step(1).sample(2000, torch.Generator().manual_seed(0))
    assert 0.4 <= drawn.min() < 0.42 and 4.8 < drawn.max() <= 5.0
    one_step, u = StepIntervals(distribution, 0.02, 80.0, []), torch.linspace(0, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(one_step.at_step(0).quantile(u), whole.quantile(u))


@pytest.mark.parametrize("later", [[5.0, 5.0], [0.4, 5.0], [80.0], [0.01]])
def test_intervals_of_steps_that_do_not_descend(later: list[float]) -> None:
    with pytest.raises(ValueError, match=r"later_sigmas=\[.*\]: expected descending levels between sigma_max=80.0"):
        StepIntervals(KarrasSigma, 0.02, 80.0, later)


def test_the_highest_level_falls_at_once() -> None:
    """As in ProlificDreamer."""
    annealed = AnnealedSigma(LogUniformSigma, 0.02, 80.0, 5.0, begins=0.2, ends=0.2)
    highest = [float(annealed.after(part).quantile(torch.tensor(1.0))) for part in (0.0, 0.19, 0.2, 1.0)]
    assert highest == pytest.approx([80.0, 80.0, 5.0, 5.0], rel=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((KarrasSigma, 0.02, 80.0, 80.0, 0.0, 1.0), "sigma_end=80.0: expected a level above sigma_min=0.02 and below"),
        ((KarrasSigma, 0.02, 80.0, 0.01, 0.0, 1.0), "sigma_end=0.01: expected a level above sigma_min=0.02 and below"),
        ((KarrasSigma, 0.02, 80.0, 1.0, 0.5, 0.4), "begins=0.5, ends=0.4: expected begins <= ends"),
        ((LogNormalSigma, 0.02, 80.0, 1.0, 0.0, 1.0), "distribution: expected one of two levels, such as"),
    ],
)
def test_annealing_that_there_is_not(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        AnnealedSigma(*arguments)

"""The noise convention of the package, ``x_sigma = x0 + sigma * noise``, and distributions of sigma.

A distribution of sigma is defined by its quantile function and the inverse, ``cdf``. Bins of ``cdf(sigma)`` of equal
width get equally many samples for every distribution (see :mod:`onestep.objectives.density_ratio`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Annotated, NamedTuple, Self, TypeVar

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from onestep.ranges import Fraction, Positive, checked
from onestep.reading import one_line

_Level = TypeVar("_Level", float, Tensor)

#: The exponent of the Karras grid, and the parameters of EDM's training distribution: its levels are finite in float32.
Rho = Annotated[float, Ge(0.1), Le(1000)]
LogMean = Annotated[float, Ge(-30), Le(30)]
LogStd = Annotated[float, Gt(0), Le(10)]


def expand_like(sigma: Tensor, x: Tensor) -> Tensor:
    """``sigma`` [B] as [B, 1, ...] with as many dimensions as ``x``."""
    return sigma.reshape(-1, *(1,) * (x.ndim - 1))


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """``x0 + sigma * noise`` for ``x0`` and ``noise`` [B, ...] and ``sigma`` [B], in data units."""
    return x0 + expand_like(sigma, x0) * noise


class Noised(NamedTuple):
    """Noise levels [B], in data units, and standard normal noise [B, ...] of a batch of samples."""

    sigma: Tensor
    noise: Tensor

    def add_to(self, x0: Tensor) -> Tensor:
        """``x0 + sigma * noise`` [B, ...]."""
        return add_noise(x0, self.noise, self.sigma)


def per_sample_sum(x: Tensor) -> Tensor:
    """The sum over all but the first dimension: [B, ...] to [B]."""
    return x.flatten(1).sum(1)


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """The decreasing noise levels [steps] of Karras et al. 2022 (arXiv 2206.00364), eq. 5, in float64."""
    u = torch.linspace(0, 1, steps, dtype=torch.float64)
    return (sigma_max ** (1 / rho) + u * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


class SigmaDistribution(ABC):
    """A distribution of the noise level, defined by its quantile function and the inverse."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The quantiles [B] of sigma at the probabilities ``u`` [B] in [0, 1]."""

    @abstractmethod
    def cdf(self, sigma: Tensor) -> Tensor:
        """The probability [B] of levels below ``sigma`` [B]."""

    def after(self, progress: float) -> Self:
        """The distribution after the part ``progress`` in [0, 1] of a training; most do not change."""
        return self

    def at_step(self, step: int) -> Self:
        """The distribution for samples of a generator's ``step``, counted from 0; most are the same for all."""
        return self

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """``count`` independent samples [count], float32, on the rng's device."""
        return self.quantile(torch.rand(count, generator=rng, device=rng.device))


def check_levels(sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """Both levels, in order; None stands for a teacher's level in a configuration alone.

    Raises:
        ValueError: naming both.
    """
    if sigma_min is None or sigma_max is None or not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: expected 0 < sigma_min < sigma_max")
    return sigma_min, sigma_max


@checked
class LogNormalSigma(SigmaDistribution):
    """``log sigma ~ N(log_mean, log_std^2)``: EDM's training distribution (arXiv 2206.00364, table 1)."""

    def __init__(self, log_mean: LogMean, log_std: LogStd) -> None:
        # validate_args would synchronise with the device.
        self.normal = torch.distributions.Normal(log_mean, log_std, validate_args=False)

    def quantile(self, u: Tensor) -> Tensor:
        # torch.rand can return exactly 0, whose quantile is 0. Denoisers are not defined at this noise level.
        return self.normal.icdf(u.clamp(1e-7, 1 - 1e-7)).exp()

    def cdf(self, sigma: Tensor) -> Tensor:
        return self.normal.cdf(sigma.log())


@checked
class LogUniformSigma(SigmaDistribution):
    """``log sigma`` uniform between the logarithms of ``sigma_min`` and ``sigma_max``."""

    def __init__(self, sigma_min: Positive | None, sigma_max: Positive | None) -> None:
        self.log_min, self.log_max = map(math.log, check_levels(sigma_min, sigma_max))

    def quantile(self, u: Tensor) -> Tensor:
        return torch.exp(self.log_min + u * (self.log_max - self.log_min))

    def cdf(self, sigma: Tensor) -> Tensor:
        return ((sigma.log() - self.log_min) / (self.log_max - self.log_min)).clamp(0, 1)


@checked
class KarrasSigma(SigmaDistribution):
    """Uniform on the Karras grid: ``sigma^(1/rho)`` uniform (arXiv 2206.00364, eq. 5, in the limit of many steps).

    The distribution of the noise levels in the generator's loss of DMD2, SiD and f-distill.
    """

    def __init__(self, sigma_min: Positive | None, sigma_max: Positive | None, rho: Rho = 7.0) -> None:
        self.rho = rho
        self.root_min, self.root_max = (level ** (1 / rho) for level in check_levels(sigma_min, sigma_max))

    def quantile(self, u: Tensor) -> Tensor:
        return (self.root_min + u * (self.root_max - self.root_min)) ** self.rho

    def cdf(self, sigma: Tensor) -> Tensor:
        return ((sigma ** (1 / self.rho) - self.root_min) / (self.root_max - self.root_min)).clamp(0, 1)


@checked
class ShiftedSigma(SigmaDistribution):
    """Flow matching's time uniform, then shifted: ``t' = shift t / (1 + (shift - 1) t)`` (arXiv 2403.03206, eq. 23).

    With ``sigma = t / (1 - t)`` the shift multiplies sigma. For images of n times as many pixels as those of another
    shift, sqrt(n) times that shift keeps the uncertainty of a level. The levels are those between ``sigma_min`` and
    ``sigma_max``, after the shift.
    """

    def __init__(self, sigma_min: Positive | None, sigma_max: Positive | None, shift: Positive) -> None:
        self.shift = shift
        low, high = check_levels(sigma_min, sigma_max)
        self.t_min, self.t_max = low / (low + shift), high / (high + shift)
        self.rest_max = shift / (shift + high)  # 1 - t_max, with its digits

    def quantile(self, u: Tensor) -> Tensor:
        rest = self.rest_max + (1 - u) * (self.t_max - self.t_min)
        return self.shift * (self.t_min + u * (self.t_max - self.t_min)) / rest

    def cdf(self, sigma: Tensor) -> Tensor:
        return ((sigma / (sigma + self.shift) - self.t_min) / (self.t_max - self.t_min)).clamp(0, 1)


def res_shift_root(sigma: _Level, kappa: float) -> _Level:
    """``sqrt(eta)`` of ResShift (arXiv 2307.12348) at ``sigma = kappa sqrt(eta) / (1 - eta)``."""
    return ((kappa**2 + 4 * sigma**2) ** 0.5 - kappa) / (2 * sigma)


@checked
class ResShiftSigma(SigmaDistribution):
    """Uniform on ResShift's schedule (arXiv 2307.12348), in the limit of many steps.

    ``sqrt(eta) = first (last / first)^(u^power)`` for u uniform in [0, 1], see
    :class:`onestep.samplers.ResShiftSampler`; ``sigma_min`` and ``sigma_max`` are the levels of its ends.
    """

    def __init__(
        self, sigma_min: Positive | None, sigma_max: Positive | None, kappa: Positive = 2.0, power: Positive = 0.3
    ) -> None:
        self.kappa, self.power = kappa, power
        roots = (res_shift_root(level, kappa) for level in check_levels(sigma_min, sigma_max))
        self.log_min, self.log_max = map(math.log, roots)

    def quantile(self, u: Tensor) -> Tensor:
        log_root = self.log_min + u**self.power * (self.log_max - self.log_min)
        return self.kappa * log_root.exp() / -torch.expm1(2 * log_root)

    def cdf(self, sigma: Tensor) -> Tensor:
        log_root = res_shift_root(sigma, self.kappa).log()
        return ((log_root - self.log_min) / (self.log_max - self.log_min)).clamp(0, 1) ** (1 / self.power)


class SigmaBelow(SigmaDistribution):
    """The part of another distribution below the level ``highest``, in data units.

    Raises:
        ValueError: if ``highest`` is below all its levels.
    """

    def __init__(self, whole: SigmaDistribution, highest: float) -> None:
        self.whole = whole
        self.share = float(whole.cdf(torch.tensor(highest, dtype=torch.float64)))
        if self.share == 0:
            raise ValueError(f"no noise level is below {highest:g}: use levels that begin lower")

    def quantile(self, u: Tensor) -> Tensor:
        return self.whole.quantile(u * self.share)

    def cdf(self, sigma: Tensor) -> Tensor:
        return (self.whole.cdf(sigma) / self.share).clamp(max=1)


def between(distribution: Callable[..., SigmaDistribution], lowest: float, highest: float) -> SigmaDistribution:
    """The ``distribution`` of the levels from ``lowest`` to ``highest``.

    Raises:
        ValueError: if it is not one of two levels.
    """
    try:
        return distribution(sigma_min=lowest, sigma_max=highest)
    except TypeError as error:
        raise ValueError(
            f"distribution: expected one of two levels, such as onestep.noise.LogUniformSigma ({one_line(error)})"
        ) from error


@checked
class AnnealedSigma(SigmaDistribution):
    """A distribution that loses its highest levels during a training, as in ProlificDreamer (arXiv 2305.16213, sec. 4).

    The share of it that is drawn, from the lowest level on, falls linearly from 1 to the probability of levels below
    ``sigma_end``; :meth:`after` gives what is left. The object itself is that of the start. A diagnosis and a
    normaliser of the ratio read it, so that their bins of levels do not move.

    Args:
        distribution: makes the distribution of the start from ``sigma_min`` and ``sigma_max``.
        sigma_min, sigma_max: its levels, in data units.
        sigma_end: the highest level at the end.
        begins, ends: parts of the training between which the share falls; it falls at once where they are equal.

    Raises:
        ValueError: for a ``sigma_end`` that is not between the levels, or an end before the beginning.
    """

    def __init__(
        self,
        distribution: Callable[..., SigmaDistribution],
        sigma_min: Positive | None,
        sigma_max: Positive | None,
        sigma_end: Positive,
        begins: Fraction,
        ends: Fraction,
    ) -> None:
        lowest, highest = check_levels(sigma_min, sigma_max)
        if not lowest < sigma_end < highest:
            raise ValueError(
                f"sigma_end={sigma_end}: expected a level above sigma_min={lowest} and below sigma_max={highest}"
            )
        if begins > ends:
            raise ValueError(f"begins={begins}, ends={ends}: expected begins <= ends, as parts of the training")
        self.whole = between(distribution, lowest, highest)
        self.last = float(self.whole.cdf(torch.tensor(sigma_end, dtype=torch.float64)))
        self.begins, self.ends, self.share = begins, ends, 1.0

    def after(self, progress: float) -> Self:
        annealed = copy(self)
        annealed.share = float(np.interp(progress, [self.begins, self.ends], [1.0, self.last]))
        return annealed

    def quantile(self, u: Tensor) -> Tensor:
        return self.whole.quantile(u * self.share)

    def cdf(self, sigma: Tensor) -> Tensor:
        return (self.whole.cdf(sigma) / self.share).clamp(max=1)

"""Samplers of many-step teachers: EDM's (Karras et al. 2022, arXiv 2206.00364) and Euler's method."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from onestep.denoiser import NO_CONDITION, Condition, Denoiser, score
from onestep.models.base import DenoiserNetwork
from onestep.noise import Rho, check_levels, expand_like, karras_sigmas, res_shift_root
from onestep.precision import double
from onestep.ranges import NonNegative, Positive, PositiveFraction, Steps, checked
from onestep.seeding import noise_from_latents

HeunSteps = Annotated[int, Ge(2), Le(10_000)]


class Sampler(ABC):
    """Maps latents to images by many evaluations of a denoiser."""

    @property
    @abstractmethod
    def network_evaluations(self) -> int:
        """Evaluations of the denoiser per sample."""

    @abstractmethod
    def __call__(
        self,
        denoiser: Denoiser,
        latents: Tensor,
        condition: Condition = NO_CONDITION,
        noises: Iterator[Tensor] | None = None,
    ) -> Tensor:
        """Images [B, C, H, W] in data units from ``latents`` [B, C, H, W] ~ N(0, I).

        A stochastic sampler uses ``noises`` [B, C, H, W] for the noise that it adds.
        """


@checked
class EulerSampler(Sampler):
    """Euler's method for the probability flow ODE in sigma, at the noise levels of the network's schedule.

    For a diffusers network the result is that of its pipeline with an ``EulerDiscreteScheduler`` and the same latents.
    DDIM (arXiv 2010.02502, eq. 13) and Euler steps of flow matching are the same method in the variable sigma. DDIM's
    first x_t has variance 1, so its latents are these divided by ``sqrt(1 + 1/sigma^2)``.

    Args:
        steps: network evaluations.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    @property
    def network_evaluations(self) -> int:
        return self.steps

    def sigmas(self, denoiser: Denoiser) -> list[float]:
        """The noise levels of the calls of ``denoiser``, and 0.

        Raises:
            ValueError: if it is not a network, and so has no schedule.
        """
        if not isinstance(denoiser, DenoiserNetwork):
            raise ValueError("sampler=euler: this teacher has no noise schedule; use sampler=heun")
        return denoiser.sampling_sigmas(self.steps)

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        latents: Tensor,
        condition: Condition = NO_CONDITION,
        noises: Iterator[Tensor] | None = None,
    ) -> Tensor:
        sigmas = self.sigmas(denoiser)
        x = _start(denoiser, latents, sigmas[0], condition)
        noises = noise_from_latents(latents.to(x.device), x.dtype) if noises is None else (n.to(x) for n in noises)
        for sigma, sigma_next in pairwise(sigmas):
            level = torch.full((len(latents),), sigma, device=latents.device)
            x0 = double(denoiser(x.float().to(latents.device), level, condition))
            x = self._step(x, x0, sigma, sigma_next, noises)
        return x.to(latents)

    def _step(self, x: Tensor, x0: Tensor, sigma: float, sigma_next: float, noises: Iterator[Tensor]) -> Tensor:
        """The state at ``sigma_next``, from ``x`` at ``sigma`` with the prediction ``x0``; both in double precision."""
        return x0 + (sigma_next / sigma) * (x - x0)


@checked
class ResShiftSampler(EulerSampler):
    """ResShift's sampling (arXiv 2307.12348), or SinSR's deterministic one (arXiv 2311.14760) at the same levels.

    ResShift's ``x_t = (1 - eta_t) x0 + eta_t y + kappa sqrt(eta_t) noise`` is ``(1 - eta_t) x_sigma + eta_t y`` with
    ``sigma = kappa sqrt(eta_t) / (1 - eta_t)``. In x_sigma the deterministic step is Euler's. The stochastic one is a
    sample of the posterior ``q(x_{t-1} | x_t, x0, y)`` for the predicted x0: with ``share = eta_{t-1} / eta_t``

        x_sigma' = x0 + sigma' (sqrt(share) (x_sigma - x0) / sigma + sqrt(1 - share) noise).

    Args:
        steps: network evaluations.
        kappa: the noise of the schedule.
        first, last: ``sqrt(eta)`` of the lowest and the highest level; None for a network's highest.
        power: of the schedule, ``sqrt(eta_t) = first (last / first)^(((t - 1) / (steps - 1))^power)``.
        stochastic: True for ResShift's step, False for SinSR's.

    Raises:
        ValueError: unless ``first`` is below ``last``.
    """

    def __init__(
        self,
        steps: HeunSteps,
        kappa: Positive,
        first: PositiveFraction,
        last: PositiveFraction | None,
        power: Positive,
        stochastic: bool = False,
    ) -> None:
        if last is not None and not first < last < 1:
            raise ValueError(f"sampler.first={first}, sampler.last={last}: expected first < last < 1")
        self.steps, self.kappa, self.first, self.last, self.power = steps, kappa, first, last, power
        self.stochastic = stochastic

    def sigmas(self, denoiser: Denoiser) -> list[float]:
        """The noise levels of the calls of ``denoiser``, and 0.

        Raises:
            ValueError: if a network was not trained up to the highest.
        """
        highest = getattr(denoiser, "sigma_max", math.inf)
        last = res_shift_root(highest, self.kappa) if self.last is None and highest < math.inf else self.last
        if last is None or last <= self.first:
            raise ValueError(
                f"sampler.last=null: the highest level of this denoiser is {highest:g}: set it above first={self.first}"
            )
        t = torch.linspace(1, 0, self.steps, dtype=torch.float64)
        eta = (self.first * (last / self.first) ** t**self.power) ** 2
        levels = self.kappa * eta.sqrt() / (1 - eta)
        if self.last is not None and levels[0] > highest:
            fitting = res_shift_root(highest, self.kappa)
            raise ValueError(
                f"sampler.last={self.last}: the highest level is {levels[0]:.4g}, and this network was trained up to "
                f"{highest:g}: set sampler.last={math.floor(fitting * 1e4) / 1e4} or less"
            )
        return [*_rounded(denoiser, levels).tolist(), 0.0]

    def _step(self, x: Tensor, x0: Tensor, sigma: float, sigma_next: float, noises: Iterator[Tensor]) -> Tensor:
        if not self.stochastic or sigma_next == 0:
            return super()._step(x, x0, sigma, sigma_next, noises)
        root = res_shift_root(sigma_next, self.kappa) / res_shift_root(sigma, self.kappa)  # of the share
        return x0 + sigma_next * (root / sigma * (x - x0) + math.sqrt(1 - root**2) * next(noises))


@checked
class HeunSampler(Sampler):
    """Heun's second-order sampler, deterministic (algorithm 1) or, with ``churn``, stochastic (algorithm 2).

    Args:
        steps: number of noise levels before 0; the sampler needs ``2 * steps - 1`` network evaluations.
        sigma_min, sigma_max, rho: the noise levels, see :func:`onestep.noise.karras_sigmas`.
        churn: noise added over the full trajectory (S_churn); 0 is deterministic.
        churn_min, churn_max: range of the noise levels at which noise is added (S_tmin, S_tmax).
        churn_noise: standard deviation of the added noise (S_noise).
    """

    def __init__(
        self,
        steps: HeunSteps,
        sigma_min: Positive,
        sigma_max: Positive,
        rho: Rho = 7.0,
        churn: NonNegative = 0.0,
        churn_min: NonNegative = 0.0,
        churn_max: NonNegative = 10.0**12,
        churn_noise: NonNegative = 1.0,
    ) -> None:
        check_levels(sigma_min, sigma_max)
        self.steps, self.sigma_min, self.sigma_max, self.rho = steps, sigma_min, sigma_max, rho
        self.churn, self.churn_min, self.churn_max, self.churn_noise = churn, churn_min, churn_max, churn_noise

    @property
    def network_evaluations(self) -> int:
        return 2 * self.steps - 1

    def sigmas(self, denoiser: Denoiser) -> list[float]:
        """The noise levels of the calls of ``denoiser``, and 0; for a network, restricted to its training levels.

        Raises:
            ValueError: if the range has no training level of the network.
        """
        sigma_min, sigma_max = self.sigma_min, self.sigma_max
        if isinstance(denoiser, DenoiserNetwork):
            sigma_min, sigma_max = max(sigma_min, denoiser.sigma_min), min(sigma_max, denoiser.sigma_max)
            if sigma_min >= sigma_max:
                raise ValueError(
                    f"sampler.sigma_min={self.sigma_min}, sampler.sigma_max={self.sigma_max}: this network was trained "
                    f"between {denoiser.sigma_min} and {denoiser.sigma_max}"
                )
        levels = karras_sigmas(self.steps, sigma_min, sigma_max, self.rho)
        return [*_rounded(denoiser, levels).tolist(), 0.0]

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        latents: Tensor,
        condition: Condition = NO_CONDITION,
        noises: Iterator[Tensor] | None = None,
    ) -> Tensor:
        """Images [B, C, H, W] in data units from ``latents`` [B, C, H, W] ~ N(0, I).

        The state is float64 and the network float32, as in EDM, because steps at small sigma are small. The churn uses
        ``noises`` [B, C, H, W]. If it is None, a sample's noise is a function of its latent, so that an image does not
        depend on the rest of the batch.
        """
        sigmas = self.sigmas(denoiser)
        x = _start(denoiser, latents, sigmas[0], condition)
        noises = noise_from_latents(latents.to(x.device), x.dtype) if noises is None else (n.to(x) for n in noises)
        for sigma, sigma_next in pairwise(sigmas):
            sigma_hat, x = self._add_churn(denoiser, x, sigma, noises)
            slope = self._slope(denoiser, x, sigma_hat, condition, latents.device)
            proposal = x + (sigma_next - sigma_hat) * slope
            if sigma_next > 0:
                slope = (slope + self._slope(denoiser, proposal, sigma_next, condition, latents.device)) / 2
                proposal = x + (sigma_next - sigma_hat) * slope
            x = proposal
        return x.to(latents)

    def _add_churn(self, denoiser: Denoiser, x: Tensor, sigma: float, noises: Iterator[Tensor]) -> tuple[float, Tensor]:
        if self.churn == 0 or not self.churn_min <= sigma <= self.churn_max:
            return sigma, x
        raised = sigma * (1 + min(self.churn / self.steps, math.sqrt(2) - 1))
        sigma_hat = _rounded(denoiser, torch.tensor(raised, dtype=torch.float64)).item()
        return sigma_hat, x + math.sqrt(sigma_hat**2 - sigma**2) * self.churn_noise * next(noises)

    @staticmethod
    def _slope(denoiser: Denoiser, x: Tensor, sigma: float, condition: Condition, device: torch.device) -> Tensor:
        """dx/dsigma = -sigma * score of the probability flow ODE (eq. 1 with s(t) = 1, sigma(t) = t)."""
        level = torch.full((len(x),), sigma, dtype=torch.float64, device=x.device)
        x0 = double(denoiser(x.float().to(device), level.float().to(device), condition))
        return -expand_like(level, x) * score(x0, x, level)


def _start(denoiser: Denoiser, latents: Tensor, sigma: float, condition: Condition) -> Tensor:
    """``x_sigma`` [B, C, H, W] at the highest level, in double precision, around the network's mean there."""
    x = double(latents) * sigma
    mean = denoiser.sampling_mean(condition) if isinstance(denoiser, DenoiserNetwork) else None
    return x if mean is None else x + mean.to(x)


def _rounded(denoiser: Denoiser, levels: Tensor) -> Tensor:
    """The training levels of the denoiser nearest to ``levels``; ``levels`` if it is not a network."""
    return denoiser.round_sigma(levels) if isinstance(denoiser, DenoiserNetwork) else levels

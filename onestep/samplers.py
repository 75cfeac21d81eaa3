"""How a many-step teacher draws: by EDM's samplers (Karras et al. 2022, arXiv 2206.00364) or by Euler's method."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from onestep.denoiser import NO_CONDITION, Condition, Denoiser, score
from onestep.models.base import DenoiserNetwork
from onestep.noise import expand_like, karras_sigmas
from onestep.seeding import noise_from_latents


class Sampler(ABC):
    """From latents to images, by many evaluations of a denoiser."""

    @property
    @abstractmethod
    def network_evaluations(self) -> int:
        """Evaluations of the denoiser that a sample costs."""

    @abstractmethod
    def __call__(
        self,
        denoiser: Denoiser,
        latents: Tensor,
        condition: Condition = NO_CONDITION,
        noises: Iterator[Tensor] | None = None,
    ) -> Tensor:
        """Images [B, C, H, W] in data units from ``latents`` [B, C, H, W] ~ N(0, I).

        Those that add noise on the way take it from ``noises`` [B, C, H, W].
        """


class EulerSampler(Sampler):
    """Euler's method for the probability flow, along the noise levels of the network's own schedule.

    For a diffusers network this is what its pipeline draws with an ``EulerDiscreteScheduler`` of the same latents: the
    ODE's variable is sigma, in which DDIM (arXiv 2010.02502, eq. 13) and flow matching's Euler steps are this method
    too. Of DDIM's latents, which are those of its first timestep's variance 1, ours are ``sqrt(1 + 1/sigma^2)`` times.

    Args:
        steps: network evaluations.
    """

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"sampler.steps={steps}: expected at least 1")
        self.steps = steps

    @property
    def network_evaluations(self) -> int:
        return self.steps

    def sigmas(self, denoiser: Denoiser) -> list[float]:
        """The noise levels at which ``denoiser`` is called, and 0.

        Raises:
            ValueError: if it is no network, and so has no schedule.
        """
        if not isinstance(denoiser, DenoiserNetwork):
            raise ValueError("this teacher has no noise schedule of its own to follow: use sampler=heun")
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
        x = latents.double() * sigmas[0]
        for sigma, sigma_next in pairwise(sigmas):
            level = torch.full((len(latents),), sigma, device=x.device)
            x0 = denoiser(x.float(), level, condition).double()
            x = x0 + (sigma_next / sigma) * (x - x0)
        return x.to(latents.dtype)


class HeunSampler(Sampler):
    """Heun's second-order sampler, deterministic (algorithm 1) or, with ``churn``, stochastic (algorithm 2).

    Args:
        steps: number of noise levels before 0; the network is evaluated ``2 * steps - 1`` times.
        sigma_min, sigma_max, rho: the noise levels, see :func:`onestep.noise.karras_sigmas`.
        churn: noise added back over the whole trajectory (S_churn); 0 is deterministic.
        churn_min, churn_max: the noise levels between which noise is added (S_tmin, S_tmax).
        churn_noise: standard deviation of the added noise (S_noise).
    """

    def __init__(
        self,
        steps: int,
        sigma_min: float,
        sigma_max: float,
        rho: float = 7.0,
        churn: float = 0.0,
        churn_min: float = 0.0,
        churn_max: float = math.inf,
        churn_noise: float = 1.0,
    ) -> None:
        if steps < 2 or not 0 < sigma_min < sigma_max or churn < 0:
            raise ValueError(
                "a sampler needs steps >= 2, 0 < sigma_min < sigma_max and churn >= 0, got "
                f"steps={steps}, sigma_min={sigma_min}, sigma_max={sigma_max}, churn={churn}"
            )
        self.steps, self.sigma_min, self.sigma_max, self.rho = steps, sigma_min, sigma_max, rho
        self.churn, self.churn_min, self.churn_max, self.churn_noise = churn, churn_min, churn_max, churn_noise

    @property
    def network_evaluations(self) -> int:
        """Network evaluations a sample costs."""
        return 2 * self.steps - 1

    def sigmas(self, denoiser: Denoiser) -> list[float]:
        """The noise levels at which ``denoiser`` is called, and 0: of a network, such as it was trained at.

        Raises:
            ValueError: if it was trained at none of the levels asked for.
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

        The state is kept in float64 around the float32 network, as EDM does: small steps at small sigma matter.
        The churn takes its noise from ``noises`` [B, C, H, W]; without them, a sample's is a function of its latent, so
        that an image depends on nothing else in the batch.
        """
        batch = len(latents)
        sigmas = self.sigmas(denoiser)
        x = latents.double() * sigmas[0]
        noises = noise_from_latents(latents, x.dtype) if noises is None else (noise.to(x) for noise in noises)
        for sigma, sigma_next in pairwise(sigmas):
            sigma_hat, x = self._add_churn(denoiser, x, sigma, noises)
            slope = self._slope(denoiser, x, sigma_hat, condition, batch)
            proposal = x + (sigma_next - sigma_hat) * slope
            if sigma_next > 0:
                slope = (slope + self._slope(denoiser, proposal, sigma_next, condition, batch)) / 2
                proposal = x + (sigma_next - sigma_hat) * slope
            x = proposal
        return x.to(latents.dtype)

    def _add_churn(self, denoiser: Denoiser, x: Tensor, sigma: float, noises: Iterator[Tensor]) -> tuple[float, Tensor]:
        if self.churn == 0 or not self.churn_min <= sigma <= self.churn_max:
            return sigma, x
        raised = sigma * (1 + min(self.churn / self.steps, math.sqrt(2) - 1))
        sigma_hat = _rounded(denoiser, torch.tensor(raised, dtype=torch.float64)).item()
        return sigma_hat, x + math.sqrt(sigma_hat**2 - sigma**2) * self.churn_noise * next(noises)

    @staticmethod
    def _slope(denoiser: Denoiser, x: Tensor, sigma: float, condition: Condition, batch: int) -> Tensor:
        """dx/dsigma = -sigma * score of the probability flow ODE (eq. 1 with s(t) = 1, sigma(t) = t)."""
        level = torch.full((batch,), sigma, dtype=torch.float64, device=x.device)
        x0 = denoiser(x.float(), level.float(), condition).double()
        return -expand_like(level, x) * score(x0, x, level)


def _rounded(denoiser: Denoiser, levels: Tensor) -> Tensor:
    """The levels at which the denoiser is to be called for ``levels``."""
    return denoiser.round_sigma(levels) if isinstance(denoiser, DenoiserNetwork) else levels

"""A Gaussian mixture and its noised distributions, with score, denoiser and density ratio in closed form.

With noise, ``x_sigma = x0 + sigma * noise``, a mixture stays a mixture, with sigma^2 I added to every covariance. The
computation is in each component's eigenbasis, where this adds sigma^2 to the eigenvalues.
"""

import copy
import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from onestep.noise import expand_like
from onestep.ranges import NonNegative, Number, Positive

Modes = Annotated[int, Ge(1), Le(100)]


class GaussianMixture:
    """``sum_k weights_k N(means_k, covariances_k)`` over flattened samples of D dimensions.

    ``weights`` [K] are positive and sum to one. ``means`` are [K, D]. ``covariances`` [K, D, D] are symmetric and
    positive semi-definite; a singular one has no density at sigma = 0. All have one floating dtype, which is that of
    the computation. The parameters get no gradient. Raises ValueError for other parameters.

    Every method takes ``x_sigma`` [B, ...] with D values per sample and ``sigma`` [B] >= 0 in the units of x, both of
    the mixture's dtype. It is differentiable by ``x_sigma``.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        _check_parameters(weights, means, covariances)
        self.log_weights = weights.detach().log()
        self.means = means.detach()
        variances, self.axes = torch.linalg.eigh(covariances.detach())  # [K, D]; [K, D, D], axes in columns
        tolerance = 10 * means.shape[1] * torch.finfo(means.dtype).eps * variances.abs().amax()
        if (variances < -tolerance).any():
            raise ValueError(f"covariances must be positive semi-definite, got the eigenvalue {float(variances.min())}")
        self.variances = variances.clamp_min(0)

    @classmethod
    def isotropic(cls, weights: Tensor, means: Tensor, stds: Tensor) -> "GaussianMixture":
        """Components with covariance ``stds_k^2 I``, ``stds`` [K] >= 0."""
        if stds.shape != weights.shape or not (stds >= 0).all():
            raise ValueError(f"stds must be {tuple(weights.shape)} non-negative numbers, got {stds}")
        identity = torch.eye(means.shape[-1], dtype=means.dtype, device=means.device)
        return cls(weights, means, stds.square()[:, None, None] * identity)

    @classmethod
    def grid(cls, side: Modes, spacing: Positive, std: NonNegative) -> "GaussianMixture":
        """``side^2`` equal modes in the plane, on a square grid around the origin, float32."""
        coordinates = (torch.arange(side) - (side - 1) / 2) * spacing
        return cls._equal_modes(torch.cartesian_prod(coordinates, coordinates).reshape(-1, 2), std)

    @classmethod
    def ring(cls, modes: Modes, radius: Positive, std: NonNegative) -> "GaussianMixture":
        """``modes`` equal modes in the plane, evenly spaced on a circle around the origin, float32."""
        angle = torch.arange(modes) * (2 * math.pi / modes)
        return cls._equal_modes(radius * torch.stack([angle.cos(), angle.sin()], 1), std)

    @classmethod
    def modes(
        cls, weights: Sequence[Positive], means: Sequence[Sequence[Number]], stds: Sequence[NonNegative]
    ) -> "GaussianMixture":
        """Isotropic modes from plain numbers, float32; ``means`` are K lists of D."""
        return cls.isotropic(torch.tensor(weights), torch.tensor(means), torch.tensor(stds))

    @classmethod
    def _equal_modes(cls, means: Tensor, std: float) -> "GaussianMixture":
        count = len(means)
        return cls.isotropic(torch.full((count,), 1 / count), means, torch.full((count,), std))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "GaussianMixture":
        """The same mixture on another device or in another floating dtype."""
        moved = copy.copy(self)
        for name, tensor in vars(self).items():
            setattr(moved, name, tensor.to(device=device, dtype=dtype))
        return moved

    def log_prob(self, x_sigma: Tensor, sigma: Tensor) -> Tensor:
        """The log density [B] of the noised distribution at ``x_sigma``."""
        return self._components(x_sigma, sigma)[0].logsumexp(1)

    def score(self, x_sigma: Tensor, sigma: Tensor) -> Tensor:
        """The gradient of ``log_prob`` by ``x_sigma``, with the shape of ``x_sigma``."""
        log_joint, offsets, variances = self._components(x_sigma, sigma)
        per_component = torch.einsum("kde,bke->bkd", self.axes, -offsets / variances)
        return _average(log_joint, per_component).reshape(x_sigma.shape)

    def denoise(self, x_sigma: Tensor, sigma: Tensor) -> Tensor:
        """The posterior mean of x0 given ``x_sigma``, with its shape: the exact :class:`Denoiser`."""
        log_joint, offsets, variances = self._components(x_sigma, sigma)
        # A shrunk offset from the mean: x_sigma + sigma^2 score cancels at large sigma.
        shrunk = offsets * (self.variances / variances)
        per_component = self.means + torch.einsum("kde,bke->bkd", self.axes, shrunk)
        return _average(log_joint, per_component).reshape(x_sigma.shape)

    def log_ratio(self, other: "GaussianMixture", x_sigma: Tensor, sigma: Tensor) -> Tensor:
        """``log p - log q`` [B] at ``x_sigma``, p this mixture and q the ``other``."""
        return self.log_prob(x_sigma, sigma) - other.log_prob(x_sigma, sigma)

    def sample(self, count: int, rng: torch.Generator | None = None) -> Tensor:
        """``count`` independent samples of the distribution at sigma = 0, [count, D]."""
        component = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=rng)
        noise = torch.randn(count, self.means.shape[1], generator=rng, dtype=self.means.dtype, device=self.means.device)
        offsets = self.variances[component].sqrt() * noise
        return self.means[component] + torch.einsum("bde,be->bd", self.axes[component], offsets)

    def _components(self, x_sigma: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log(weight * density) [B, K]; offset from the mean and variance along each axis, both [B, K, D]."""
        x = x_sigma.flatten(1)
        dimensions = self.means.shape[1]
        if x.shape[1] != dimensions or sigma.shape != x.shape[:1]:
            raise ValueError(
                f"expected x_sigma [B, ...] with {dimensions} values per sample and sigma [B], "
                f"got {tuple(x_sigma.shape)} and {tuple(sigma.shape)}"
            )
        if x.dtype != self.means.dtype:
            raise ValueError(
                f"expected x_sigma in {self.means.dtype}, got {x.dtype}; convert either with .to(dtype=...)"
            )
        offsets = torch.einsum("kde,bkd->bke", self.axes, x[:, None] - self.means)
        variances = self.variances + expand_like(sigma, offsets).square()
        log_density = -0.5 * (offsets.square() / variances + variances.log() + math.log(2 * math.pi)).sum(2)
        return self.log_weights + log_density, offsets, variances


def _average(log_joint: Tensor, per_component: Tensor) -> Tensor:
    """The mean [B, D] of ``per_component`` [B, K, D] under the components' posterior."""
    return torch.einsum("bk,bkd->bd", log_joint.softmax(1), per_component)


def _check_parameters(weights: Tensor, means: Tensor, covariances: Tensor) -> None:
    if weights.ndim != 1 or means.ndim != 2 or covariances.shape != (*means.shape, means.shape[1]):
        shapes = f"{tuple(weights.shape)}, {tuple(means.shape)} and {tuple(covariances.shape)}"
        raise ValueError(f"expected weights [K], means [K, D] and covariances [K, D, D], got {shapes}")
    if len(weights) != len(means):
        raise ValueError(f"expected as many weights as means, got {len(weights)} and {len(means)}")
    if not weights.is_floating_point() or not weights.dtype == means.dtype == covariances.dtype:
        raise ValueError(f"expected one floating dtype, got {weights.dtype}, {means.dtype} and {covariances.dtype}")
    if not (weights > 0).all() or not torch.isclose(weights.sum(), weights.new_ones(()), atol=1e-5):
        raise ValueError(f"weights must be positive and sum to one, got {weights.tolist()}")
    if not (means.isfinite().all() and covariances.isfinite().all()):
        raise ValueError(f"means and covariances must be finite, got {means.tolist()} and {covariances.tolist()}")
    if not torch.allclose(covariances, covariances.mT, rtol=1e-5, atol=1e-6 * float(covariances.abs().max())):
        raise ValueError("covariances must be symmetric; symmetrise with (c + c.mT) / 2")

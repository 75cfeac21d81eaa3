"""Metrics of points against a Gaussian mixture whose density is known."""

import torch
from torch import Tensor

from onestep.metrics.extraction import Kind
from onestep.metrics.features import FeatureNetwork
from onestep.toy.gaussian_mixture import GaussianMixture

_NEAR = 3.0  # standard deviations from a mode's mean: 98.9 % of a planar mode


def _nearest_mode(mixture: GaussianMixture, points: Tensor) -> tuple[Tensor, Tensor]:
    """The index [N] of each point's nearest mean, and whether it is within ``_NEAR`` standard deviations of it."""
    if points.shape[1] != mixture.means.shape[1]:
        raise ValueError(
            f"these samples have {points.shape[1]} dimensions and the mixture {mixture.means.shape[1]}: this metric is "
            "for points of the mixture"
        )
    distance, mode = torch.cdist(points, mixture.means.to(points.dtype)).min(1)
    return mode, distance <= _NEAR * mixture.variances[mode].amax(1).sqrt().to(points.dtype)


class ModesCovered:
    """How many modes hold at least a ``share`` of the samples that the mixture puts near them.

    A sample counts for a mode within three standard deviations of its mean. (Elsewhere one sample is often enough: of
    thousands, some lie anywhere.)
    """

    reads: Kind = "vectors"
    features: FeatureNetwork | None = None
    title = "modes covered"
    higher_is_better = True

    def __init__(self, mixture: GaussianMixture, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(f"expected a share between 0 and 1, got {share}")
        self.mixture, self.share = mixture, share

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """The number of modes covered by ``generated`` [N, D]; ``real`` is not looked at."""
        mode, near = _nearest_mode(self.mixture, generated)
        counts = torch.bincount(mode[near], minlength=len(self.mixture.means))
        expected = self.mixture.log_weights.exp() * len(generated)
        return float((counts >= self.share * expected).sum())


class ModePrecision:
    """The share of samples within three standard deviations of some mode's mean; 0.989 for a planar mixture's own."""

    reads: Kind = "vectors"
    features: FeatureNetwork | None = None
    title = "mode precision"
    higher_is_better = True

    def __init__(self, mixture: GaussianMixture) -> None:
        self.mixture = mixture

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """The share in [0, 1] of ``generated`` [N, D]; ``real`` is not looked at."""
        return _nearest_mode(self.mixture, generated)[1].double().mean().item()


class BinnedKL:
    """``KL(q||p)`` of the distributions' masses in square cells, p's exactly and q's as counted, in nats.

    The plane outside the cells is one cell more. Of N samples that p itself drew, it is about (cells - 1) / (2 N), by
    which any value is too large.

    Args:
        mixture: p, whose components are axis-parallel.
        extent: the cells cover [-extent, extent] in each of the two dimensions.
        cells: cells along each dimension.
    """

    reads: Kind = "vectors"
    features: FeatureNetwork | None = None
    title = "KL divergence"
    higher_is_better = False

    def __init__(self, mixture: GaussianMixture, extent: float, cells: int) -> None:
        if mixture.means.shape[1] != 2:
            raise ValueError(f"the cells are planar, but the mixture has {mixture.means.shape[1]} dimensions")
        self.edges = torch.linspace(-extent, extent, cells + 1, dtype=torch.float64)
        std = (mixture.axes.square() * mixture.variances[:, None]).sum(2).sqrt().double()  # [K, 2]
        below = torch.special.ndtr((self.edges - mixture.means.double()[:, :, None]) / std[:, :, None])
        mass = below.diff(dim=2)  # [K, 2, cells]
        inside = torch.einsum("k,ki,kj->ij", mixture.log_weights.double().exp(), mass[:, 0], mass[:, 1]).flatten()
        self.log_mass = torch.cat([inside, 1 - inside.sum()[None]]).clamp_min(torch.finfo(torch.float64).tiny).log()

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """The divergence of ``generated`` [N, 2]; ``real`` is not looked at."""
        cells = len(self.edges) - 1
        index = torch.bucketize(generated.double(), self.edges, right=True) - 1
        outside = ((index < 0) | (index >= cells)).any(1)
        cell = torch.where(outside, cells * cells, index[:, 0] * cells + index[:, 1])
        share = torch.bincount(cell, minlength=cells * cells + 1).double() / len(generated)
        seen = share > 0
        return (share[seen] * (share[seen].log() - self.log_mass[seen])).sum().item()


class EnergyDistance:
    """``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` (Szekely and Rizzo 2013), unbiased: it can be a little below 0.

    Args:
        count: samples of each side that are compared; the cost grows with its square.
    """

    reads: Kind = "vectors"
    features: FeatureNetwork | None = None
    title = "energy distance"
    higher_is_better = False

    def __init__(self, count: int) -> None:
        if count < 2:
            raise ValueError(f"an energy distance needs at least 2 samples of each side, got {count}")
        self.count = count

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """The distance between the first ``count`` of ``real`` [M, D] and of ``generated`` [N, D]."""
        x, y = (points[: self.count].double() for points in (real, generated))
        across = torch.cdist(x, y).mean()
        within = [torch.cdist(points, points).sum() / (len(points) * (len(points) - 1)) for points in (x, y)]
        return float(2 * across - within[0] - within[1])

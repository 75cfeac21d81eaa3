"""Metrics of points against a Gaussian mixture with known density."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from onestep.metrics.extraction import Kind
from onestep.metrics.features import FeatureNetwork
from onestep.ranges import Positive, checked
from onestep.toy.gaussian_mixture import GaussianMixture

Share = Annotated[float, Gt(0), Lt(1)]
Cells = Annotated[int, Ge(1), Le(1000)]
Points = Annotated[int, Ge(2), Le(10**5)]

_NEAR = 3.0  # standard deviations from a mode's mean: 98.9 % of a planar mode


def _nearest_mode(mixture: GaussianMixture, points: Tensor) -> tuple[Tensor, Tensor]:
    """The index [N] of each point's nearest mean, and a mask [N] of points within ``_NEAR`` standard deviations."""
    if points.shape[1] != mixture.means.shape[1]:
        raise ValueError(
            f"the samples have {points.shape[1]} dimensions and the mixture {mixture.means.shape[1]}: this metric is "
            "for points of the mixture's dimension"
        )
    distance, mode = torch.cdist(points, mixture.means.to(points.dtype)).min(1)
    return mode, distance <= _NEAR * mixture.variances[mode].amax(1).sqrt().to(points.dtype)


@checked
class ModesCovered:
    """The number of modes with at least the fraction ``share`` of their expected number of samples.

    A sample counts for a mode within three standard deviations of the mode's mean. (Other definitions ask for a single
    sample, which outliers provide among thousands.)
    """

    reads: Kind = "vectors"
    features: FeatureNetwork | None = None
    title = "modes covered"
    higher_is_better = True

    def __init__(self, mixture: GaussianMixture, share: Share) -> None:
        self.mixture, self.share = mixture, share

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """The number of modes covered by ``generated`` [N, D]; ``real`` is unused."""
        mode, near = _nearest_mode(self.mixture, generated)
        counts = torch.bincount(mode[near], minlength=len(self.mixture.means))
        expected = self.mixture.log_weights.exp() * len(generated)
        return float((counts >= self.share * expected).sum())


class ModePrecision:
    """The fraction of samples within three standard deviations of a mode's mean; 0.989 for samples of the mixture."""

    reads: Kind = "vectors"
    features: FeatureNetwork | None = None
    title = "mode precision"
    higher_is_better = True

    def __init__(self, mixture: GaussianMixture) -> None:
        self.mixture = mixture

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """The fraction in [0, 1] of ``generated`` [N, D]; ``real`` is unused."""
        return _nearest_mode(self.mixture, generated)[1].double().mean().item()


@checked
class BinnedKL:
    """``KL(q||p)`` between the masses in square cells, in nats. p's masses are exact, q's are counts.

    The plane outside the cells is one more cell. For C cells and N samples of p itself the value is about
    (C - 1) / (2 N): the bias of the estimate.

    Args:
        mixture: p, with axis-parallel components.
        extent: the cells cover [-extent, extent] in each of the two dimensions.
        cells: cells along each dimension.
    """

    reads: Kind = "vectors"
    features: FeatureNetwork | None = None
    title = "KL divergence"
    higher_is_better = False

    def __init__(self, mixture: GaussianMixture, extent: Positive, cells: Cells) -> None:
        if mixture.means.shape[1] != 2:
            raise ValueError(f"metrics.kl needs a mixture of 2 dimensions, got {mixture.means.shape[1]}")
        self.edges = torch.linspace(-extent, extent, cells + 1, dtype=torch.float64)
        std = (mixture.axes.square() * mixture.variances[:, None]).sum(2).sqrt().double()  # [K, 2]
        below = torch.special.ndtr((self.edges - mixture.means.double()[:, :, None]) / std[:, :, None])
        mass = below.diff(dim=2)  # [K, 2, cells]
        inside = torch.einsum("k,ki,kj->ij", mixture.log_weights.double().exp(), mass[:, 0], mass[:, 1]).flatten()
        self.log_mass = torch.cat([inside, 1 - inside.sum()[None]]).clamp_min(torch.finfo(torch.float64).tiny).log()

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """The divergence of ``generated`` [N, 2]; ``real`` is unused."""
        cells = len(self.edges) - 1
        index = torch.bucketize(generated.double(), self.edges, right=True) - 1
        outside = ((index < 0) | (index >= cells)).any(1)
        cell = torch.where(outside, cells * cells, index[:, 0] * cells + index[:, 1])
        mass = torch.bincount(cell, minlength=cells * cells + 1).double() / len(generated)
        occupied = mass > 0
        return (mass[occupied] * (mass[occupied].log() - self.log_mass[occupied])).sum().item()


@checked
class EnergyDistance:
    """``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` (Szekely and Rizzo 2013), unbiased: it can be negative.

    Args:
        count: number of real and of generated samples; the cost is quadratic in it.
    """

    reads: Kind = "vectors"
    features: FeatureNetwork | None = None
    title = "energy distance"
    higher_is_better = False

    def __init__(self, count: Points) -> None:
        self.count = count

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """The distance between the first ``count`` of ``real`` [M, D] and of ``generated`` [N, D]."""
        x, y = (points[: self.count].double() for points in (real, generated))
        across = torch.cdist(x, y).mean()
        within = [torch.cdist(points, points).sum() / (len(points) * (len(points) - 1)) for points in (x, y)]
        return float(2 * across - within[0] - within[1])

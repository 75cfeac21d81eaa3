"""The Frechet distance of two sets of features: with Inception features it is the FID (arXiv 1706.08500)."""

import torch
from torch import Tensor

from onestep.metrics.extraction import Kind
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.statistics import Moments


class FrechetDistance:
    """``|mu_p - mu_q|^2 + tr(C_p + C_q - 2 (C_p C_q)^(1/2))`` in float64.

    Args:
        features: its own feature network; None for that of all metrics.
        samples: the number of samples that a protocol asks for; another number is refused. None for any.
        title: how tables and plots name it, such as FID in Inception's features.
    """

    reads: Kind = "moments"
    higher_is_better = False

    def __init__(
        self, features: FeatureNetwork | None = None, samples: int | None = None, title: str = "Frechet distance"
    ) -> None:
        self.features, self.samples, self.title = features, samples, title

    def __call__(self, real: Tensor | Moments, generated: Tensor | Moments) -> float:
        """The distance between ``real`` [M, D] and ``generated`` [N, D] features, or between their moments."""
        p, q = (side if isinstance(side, Moments) else Moments.of(side) for side in (real, generated))
        return frechet_distance(p, q)


def frechet_distance(p: Moments, q: Moments) -> float:
    """The distance, at least as exact as its inputs: of a set and itself it is 0, of any rank.

    The trace of ``(C_p C_q)^(1/2)`` is the sum of the singular values of ``C_p^(1/2) C_q^(1/2)``. Roots of the
    eigenvalues of ``C_p C_q``, as torchmetrics has them, turn a rounding error of 1e-16 into 1e-8 where fewer samples
    than dimensions leave eigenvalues of 0.

    Raises:
        ValueError: for features of different dimensions.
    """
    if len(p.mean) != len(q.mean):
        raise ValueError(f"features of {len(p.mean)} dimensions against {len(q.mean)}: they are of two networks")
    root_trace = torch.linalg.svdvals(_root(p.covariance).T @ _root(q.covariance)).sum()
    squares = (p.mean - q.mean).square().sum()
    return float(squares + p.covariance.trace() + q.covariance.trace() - 2 * root_trace)


def _root(covariance: Tensor) -> Tensor:
    """A matrix A with ``A A^T = covariance``; eigenvalues that are rounding errors of 0 are 0."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors * torch.where(values > floor, values, 0).sqrt()

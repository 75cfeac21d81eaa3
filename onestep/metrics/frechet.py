"""The Frechet distance of two sets of features: with Inception features it is the FID (arXiv 1706.08500)."""

import torch
from torch import Tensor

from onestep.metrics.extraction import Kind
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.statistics import Moments
from onestep.ranges import Samples, Text


class FrechetDistance:
    """``|mu_p - mu_q|^2 + tr(C_p + C_q - 2 (C_p C_q)^(1/2))`` in float64.

    Args:
        features: the metric's feature network; None for the evaluator's.
        samples: the protocol's number of samples, the only one allowed; None for any.
        title: its name in tables and plots, such as FID for Inception's features.
    """

    reads: Kind = "moments"
    higher_is_better = False

    def __init__(
        self, features: FeatureNetwork | None = None, samples: Samples | None = None, title: Text = "Frechet distance"
    ) -> None:
        self.features, self.samples, self.title = features, samples, title

    def __call__(self, real: Tensor | Moments, generated: Tensor | Moments) -> float:
        """The distance between ``real`` [M, D] and ``generated`` [N, D] features, or between their moments."""
        p, q = (side if isinstance(side, Moments) else Moments.of(side) for side in (real, generated))
        return frechet_distance(p, q)


def frechet_distance(p: Moments, q: Moments) -> float:
    """The Frechet distance of two sets of features, exact up to the rounding of the moments, also for singular ones.

    The trace of ``(C_p C_q)^(1/2)`` is the sum of the singular values of ``C_p^(1/2) C_q^(1/2)``. torchmetrics takes
    roots of the eigenvalues of ``C_p C_q``. With fewer samples than dimensions some eigenvalues are 0, and their
    rounding errors of 1e-16 become 1e-8.

    Raises:
        ValueError: for features of different dimensions.
    """
    if len(p.mean) != len(q.mean):
        raise ValueError(
            f"features of {len(p.mean)} and {len(q.mean)} dimensions: give the features of one network on both sides"
        )
    root_trace = torch.linalg.svdvals(_root(p.covariance).T @ _root(q.covariance)).sum()
    squares = (p.mean - q.mean).square().sum()
    return float(squares + p.covariance.trace() + q.covariance.trace() - 2 * root_trace)


def _root(covariance: Tensor) -> Tensor:
    """A matrix A with ``A A^T = covariance``; eigenvalues below the rounding error are set to 0."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors * torch.where(values > floor, values, 0).sqrt()

"""Weights of samples, by noise level and by distance to the teacher's prediction."""

from typing import Annotated, Protocol

import torch
from annotated_types import Ge, Le
from torch import Tensor

from onestep.noise import per_sample_sum
from onestep.objectives.base import Predictions, require_x0_teacher
from onestep.objectives.density_ratio import global_mean
from onestep.ranges import checked


class Weighting(Protocol):
    """A detached factor [B] of the per-sample losses.

    ``power`` is the power of 1/sigma in the objective's loss: 2 for distribution matching, 4 for score distances.
    """

    def __call__(self, predictions: Predictions, power: int) -> Tensor: ...


class UnitWeighting:
    """1: the exact gradient of the divergence at each noise level."""

    def __call__(self, predictions: Predictions, power: int) -> Tensor:
        return torch.ones_like(predictions.sigma)


@checked
class PowerWeighting:
    """``sigma^exponent``: a function of the noise level alone, so that the objective's minimum remains computable.

    Exponent 2 expresses distribution matching in x0-predictions instead of scores, which balances the noise levels.
    """

    def __init__(self, exponent: Annotated[float, Ge(-10), Le(10)]) -> None:
        self.exponent = exponent

    def __call__(self, predictions: Predictions, power: int) -> Tensor:
        return predictions.sigma**self.exponent


class DreamFusionWeighting:
    """DreamFusion's ``w(t) = sigma_t^2`` for the difference of eps-predictions (arXiv 2209.14988, eq. 3), also VSD's.

    Its noise is variance preserving, ``sigma_t^2 = sigma^2 / (1 + sigma^2)``. The difference of eps-predictions is
    sigma times the difference of the scores. Together: ``sigma^3 / (1 + sigma^2)``. Raises ValueError for a ``power``
    other than 2.
    """

    def __call__(self, predictions: Predictions, power: int) -> Tensor:
        if power != 2:
            raise ValueError(
                f"weighting=dreamfusion is for distribution matching (power=2), got power={power}: use weighting=dmd"
            )
        return predictions.sigma**3 / (1 + predictions.sigma**2)


@checked
class DMDWeighting:
    """``sigma^power / distance``, the distance of x_generated and x0_teacher: DMD's factor (arXiv 2311.18828, eq. 8).

    sigma^power cancels the units of the scores. The distance balances the noise levels. By default it is the sum of the
    absolute differences. DMD has their mean in its place, as its losses are means over dimensions. Here losses are
    sums. SiD has sums and the ``mean``.
    """

    def __init__(self, mean: bool = False) -> None:
        self.mean = mean

    def __call__(self, predictions: Predictions, power: int) -> Tensor:
        return predictions.sigma**power / distance(predictions, self.mean)


_SMALLEST_DISTANCE = 1e-5  # per dimension, in data units: far below one grey level; avoids a division by zero


def distance(predictions: Predictions, mean: bool) -> Tensor:
    """The sum or ``mean`` of |x_generated - x0_teacher| over a sample's dimensions [B], detached, in data units."""
    differences = (
        (predictions.x_generated - require_x0_teacher(predictions)).detach().abs().clamp_min(_SMALLEST_DISTANCE)
    )
    return per_sample_sum(differences) / (differences[0].numel() if mean else 1)


def inverse_distance(predictions: Predictions) -> Tensor:
    """``D / mean|x_generated - x0_teacher|`` [B], detached, in data units; D is the number of dimensions."""
    return predictions.x_generated[0].numel() / distance(predictions, mean=True)


def mean_inverse_distance(predictions: Predictions) -> Tensor:
    """:func:`inverse_distance`, averaged over the batch, a scalar.

    The factor of the adversarial term in the published code of SiDA (arXiv 2410.14919) and Uni-Instruct, in which a
    sample's term is not multiplied by its own distance.
    """
    return inverse_distance(predictions).mean()


def weight_scale(weight: Tensor, normalize: bool) -> Tensor:
    """The divisor of a divergence's ``weight`` [B], a detached scalar: its mean over the global batch, or 1.

    The second stage of f-distill's normalisation (arXiv 2502.15681).
    """
    if not normalize:
        return weight.new_ones(())
    # All weights underflow to 0 if the discriminator is certain of every sample: avoid 0/0.
    return global_mean(weight).clamp_min(torch.finfo(weight.dtype).tiny)

"""How much each sample counts, by its noise level and by how far the teacher is from it."""

from typing import Protocol

import torch
from torch import Tensor

from onestep.noise import per_sample_sum
from onestep.objectives.base import Predictions
from onestep.objectives.density_ratio import global_mean


class Weighting(Protocol):
    """A detached factor [B] of each sample's loss.

    ``power`` is the power of 1/sigma in the objective's loss: 2 for distribution matching, 4 for score distances.
    """

    def __call__(self, predictions: Predictions, power: int) -> Tensor: ...


class UnitWeighting:
    """1: the exact gradient of the divergence at each noise level."""

    def __call__(self, predictions: Predictions, power: int) -> Tensor:
        return torch.ones_like(predictions.sigma)


class PowerWeighting:
    """``sigma^exponent``: depends on the noise level alone, so that the objective keeps a minimum that can be computed.

    2 measures distribution matching in x0-predictions instead of scores, which evens out the noise levels.
    """

    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def __call__(self, predictions: Predictions, power: int) -> Tensor:
        return predictions.sigma**self.exponent


class DreamFusionWeighting:
    """DreamFusion's ``w(t) = sigma_t^2`` on the difference of eps-predictions (arXiv 2209.14988, eq. 3), as VSD has it.

    There noise is variance preserving, ``sigma_t^2 = sigma^2 / (1 + sigma^2)``, and eps differs by sigma times the
    score's difference: ``sigma^3 / (1 + sigma^2)`` in all. Raises ValueError for a ``power`` other than 2.
    """

    def __call__(self, predictions: Predictions, power: int) -> Tensor:
        if power != 2:
            raise ValueError("weighting=dreamfusion is for distribution matching, not for distances of scores: use dmd")
        return predictions.sigma**3 / (1 + predictions.sigma**2)


class DMDWeighting:
    """``sigma^power / sum|x_generated - x0_teacher|``: DMD's factor (Yin et al. 2023, arXiv 2311.18828, eq. 8).

    sigma^power cancels the units of the scores, the sum over a sample's dimensions evens out the noise levels. It is a
    sum, and not DMD's mean, because losses here are sums over dimensions where DMD's are means.
    """

    smallest_distance = 1e-5  # per dimension, in data units: far below one grey level, and no division by zero

    def __call__(self, predictions: Predictions, power: int) -> Tensor:
        difference = (predictions.x_generated - predictions.x0_teacher).detach()
        distance = per_sample_sum(difference.abs().clamp_min(self.smallest_distance))
        return predictions.sigma**power / distance


def weight_scale(weight: Tensor, normalize: bool) -> Tensor:
    """What to divide a divergence's ``weight`` [B] by: its mean over the global batch, or 1. A detached scalar.

    The second stage of f-distill's normalisation (arXiv 2502.15681).
    """
    if not normalize:
        return weight.new_ones(())
    # A discriminator that is sure of every sample can make all weights underflow to 0: keep 0/0 out.
    return global_mean(weight).clamp_min(torch.finfo(weight.dtype).tiny)

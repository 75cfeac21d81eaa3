"""f-distill: minimise ``D_f(p||q)`` at each noise level (Xu, Nie, Vahdat 2025, arXiv 2502.15681)."""

from torch import Tensor

from onestep.noise import expand_like
from onestep.objectives.base import (
    Objective,
    Predictions,
    descend,
    require_log_ratio,
    require_x0_fake,
    require_x0_teacher,
    score_difference,
    weight_statistics,
)
from onestep.objectives.divergences import Divergence
from onestep.objectives.weighting import Weighting, weight_scale


class FDistill(Objective):
    """The gradient ``E[-h(r) delta dx/dtheta]``, ``delta = score_p - score_q = (x0_teacher - x0_fake) / sigma^2``.

    Theorem 1 of the paper. With :class:`ReverseKL` (h = 1) it is the distribution matching of Diff-Instruct, VSD, DMD
    and DMD2. ``normalize_weight`` divides h by its mean over the global batch. Raises ValueError if the predictions
    lack ``x0_fake``, or lack ``log_ratio`` and the divergence needs it.
    """

    needs_fake_score = True
    differentiates_scores = False

    def __init__(self, divergence: Divergence, weighting: Weighting, normalize_weight: bool) -> None:
        self.divergence = divergence
        self.weighting = weighting
        self.normalize_weight = normalize_weight
        self.needs_ratio = divergence.needs_ratio

    def weight_scale(self, log_ratio: Tensor) -> Tensor:
        return weight_scale(self.divergence.weight(log_ratio.detach()), self.normalize_weight)

    def __call__(self, predictions: Predictions) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [B] with gradient ``-weighting * h * delta`` by ``x_generated``, and diagnostics."""
        x0_teacher, x0_fake = require_x0_teacher(predictions), require_x0_fake(predictions)
        log_ratio = require_log_ratio(predictions, self.divergence)

        h = self.divergence.weight(log_ratio.detach())
        scale = self.weight_scale(log_ratio) if predictions.weight_scale is None else predictions.weight_scale
        factor = self.weighting(predictions, power=2) * h / scale
        delta = score_difference(x0_teacher, x0_fake, predictions.sigma)
        losses = descend(predictions.x_generated, -expand_like(factor, delta) * delta)
        return losses, weight_statistics(h, x0_fake, predictions)

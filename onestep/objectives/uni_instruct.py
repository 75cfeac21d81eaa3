"""Uni-Instruct: minimise the diffusion expansion of ``D_f(p||q)`` (Wang et al. 2025, arXiv 2505.20755)."""

from torch import Tensor

from onestep.objectives.base import (
    Objective,
    Predictions,
    require_log_ratio,
    require_path_gradient,
    require_x0_fake,
    score_distance,
    weight_statistics,
)
from onestep.objectives.divergences import Divergence
from onestep.objectives.weighting import Weighting, weight_scale


class UniInstruct(Objective):
    """A surrogate loss with the exact gradient of ``E_q[h(r) |score_p - score_q|^2]`` at each noise level.

    ``D_f(p||q)`` at sigma = 0 is the integral of sigma times this expectation, up to its value at the largest sigma.
    With all networks frozen and the path gradient through ``x_sigma`` and ``x_generated``, the surrogate is

        [(h - r h'(r)) |d|^2 + 2 h d . (x0_fake - x_generated)] / sigma^4,   d = x0_teacher - x0_fake.

    With :class:`ReverseKL` (h = 1) it is Score Implicit Matching, and SiD with alpha = 1/2. ``exact_ratio_gradient =
    False`` detaches r, like the published code. This biases the gradient of every divergence except reverse KL.
    ``normalize_weight`` divides h by its mean over the global batch.

    Raises ValueError if the predictions lack ``x0_fake``, or lack ``log_ratio`` and the divergence needs it, or if one
    of them does not depend on an ``x_sigma`` that requires a gradient.
    """

    needs_fake_score = True
    differentiates_scores = True

    def __init__(
        self, divergence: Divergence, weighting: Weighting, normalize_weight: bool, exact_ratio_gradient: bool = True
    ) -> None:
        self.divergence = divergence
        self.weighting = weighting
        self.normalize_weight = normalize_weight
        self.exact_ratio_gradient = exact_ratio_gradient
        self.needs_ratio = divergence.needs_ratio

    def weight_scale(self, log_ratio: Tensor) -> Tensor:
        return weight_scale(self.divergence.weight(log_ratio.detach()), self.normalize_weight)

    def __call__(self, predictions: Predictions) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [B], the surrogate times the weighting, and diagnostics. The loss values are not distances."""
        x0_fake = require_x0_fake(predictions)
        log_ratio = require_log_ratio(predictions, self.divergence)
        require_path_gradient(predictions, x0_teacher=predictions.x0_teacher, x0_fake=x0_fake)
        if not self.exact_ratio_gradient:
            log_ratio = log_ratio.detach()
        elif self.needs_ratio:
            require_path_gradient(predictions, log_ratio=log_ratio)

        h = self.divergence.weight(log_ratio)
        slope = self.divergence.weight_slope(log_ratio)  # r h'(r)
        surrogate = score_distance(predictions, x0_fake, squared_weight=h - slope, projected_weight=2 * h)

        scale = self.weight_scale(log_ratio) if predictions.weight_scale is None else predictions.weight_scale
        return self.weighting(predictions, power=4) / scale * surrogate, weight_statistics(h, x0_fake, predictions)

"""TDM: reverse KL by a pseudo-Huber metric of the predictions (Luo et al. 2025, arXiv 2503.06674)."""

import torch
from torch import Tensor

from onestep.noise import expand_like
from onestep.objectives.base import (
    Objective,
    Predictions,
    descend,
    require_x0_fake,
    require_x0_teacher,
    weight_statistics,
)
from onestep.objectives.weighting import distance
from onestep.ranges import Positive, checked


@checked
class TDM(Objective):
    """The gradient of ``sum(sqrt((x - stop(x - d))^2 + huber^2)) / sum|x - x0_teacher|`` by x, the generated sample.

    ``d = x0_fake - x0_teacher = sigma^2 (score_q - score_p)`` is reverse KL's direction. Of a dimension with more than
    ``huber`` the metric takes the sign, so that none dominates; the divisor is DMD's (arXiv 2311.18828, eq. 8). Raises
    ValueError if the predictions lack ``x0_fake``.

    Args:
        huber: the difference below which the metric is quadratic, in data units.
    """

    def __init__(self, huber: Positive) -> None:
        self.huber = huber

    def __call__(self, predictions: Predictions) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [B] with this gradient, and diagnostics."""
        x0_teacher, x0_fake = require_x0_teacher(predictions), require_x0_fake(predictions)
        d = x0_fake - x0_teacher
        gradient = d / (d.square() + self.huber**2).sqrt() / expand_like(distance(predictions, mean=False), d)
        losses = descend(predictions.x_generated, gradient)
        return losses, weight_statistics(torch.ones_like(predictions.sigma), x0_fake, predictions)

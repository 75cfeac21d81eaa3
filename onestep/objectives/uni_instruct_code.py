"""Uni-Instruct's forward KL as its public code has it, which is not the paper's."""

import torch
from torch import Tensor

from onestep.objectives.base import (
    Objective,
    Predictions,
    require_path_gradient,
    require_x0_fake,
    score_distance,
    weight_statistics,
)
from onestep.objectives.weighting import Weighting, distance


class UniInstructCode(Objective):
    """``2 r d . (x0_fake - x_generated) / sigma^4`` with ``d = x0_teacher - x0_fake`` and the public code's "ratio" r.

    The code (github.com/a-little-hoof/Uni_Instruct) has ``r = -L / (1 - L)`` with ``L = D l / mean|x_generated -
    x0_teacher|``, where l is the generator's adversarial loss, averaged over the batch, and D the number of dimensions.
    L is far above 1, so r is 1 to within a thousandth whatever the discriminator says. :class:`UniInstruct` has the
    paper's loss. Without an adversarial term r is 1.

    Raises ValueError if the predictions lack ``x0_fake``, or if a prediction does not depend on an ``x_sigma`` that
    requires a gradient.
    """

    needs_fake_score = True
    differentiates_scores = True

    def __init__(self, weighting: Weighting) -> None:
        self.weighting = weighting

    def __call__(self, predictions: Predictions) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [B], the surrogate times the weighting, and diagnostics. The loss values are not distances."""
        x0_fake = require_x0_fake(predictions)
        require_path_gradient(predictions, x0_teacher=predictions.x0_teacher, x0_fake=x0_fake)
        ratio = torch.ones_like(predictions.sigma)
        if predictions.adversarial is not None:
            dimensions = predictions.x_generated[0].numel()
            scaled = dimensions * predictions.adversarial.detach().mean() / distance(predictions, mean=True)
            ratio = scaled / (scaled - 1)
        surrogate = score_distance(predictions, x0_fake, squared_weight=0.0, projected_weight=2 * ratio)
        losses = self.weighting(predictions, power=4) * surrogate
        return losses, weight_statistics(ratio, x0_fake, predictions)

"""Score identity Distillation: minimise the squared distance of the scores (Zhou et al. 2024, arXiv 2404.04057).

Uni-Instruct's public code trains with a variant of it, which is here too.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from onestep.objectives.base import (
    Objective,
    Predictions,
    require_path_gradient,
    require_x0_fake,
    score_distance,
    weight_statistics,
)
from onestep.objectives.weighting import Weighting, inverse_distance
from onestep.ranges import checked


@checked
class SiD(Objective):
    """The loss ``[2 (1 - alpha) |d|^2 + 2 d . (x0_fake - x_generated)] / sigma^4``, ``d = x0_teacher - x0_fake``.

    Twice the loss of eq. 23 of the paper. ``alpha = 1/2`` has the exact gradient of ``E_q|score_p - score_q|^2``, like
    Score Implicit Matching (arXiv 2410.16794). In practice the fake score lags behind the generator, and its part of
    that gradient is inaccurate. The authors train with 1, which drops this part, or 1.2, which reverses its sign.

    Raises ValueError if the predictions lack ``x0_fake``, or if a prediction does not depend on an ``x_sigma`` that
    requires a gradient.
    """

    needs_fake_score = True
    needs_ratio = False
    differentiates_scores = True

    def __init__(self, alpha: Annotated[float, Ge(-100), Le(100)], weighting: Weighting) -> None:
        self.alpha = alpha
        self.weighting = weighting

    def __call__(self, predictions: Predictions) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [B], the surrogate times the weighting, and diagnostics. The loss values are not distances."""
        x0_fake = require_x0_fake(predictions)
        require_path_gradient(predictions, x0_teacher=predictions.x0_teacher, x0_fake=x0_fake)
        ratio = self.ratio(predictions)
        surrogate = score_distance(
            predictions, x0_fake, squared_weight=2 * (1 - self.alpha), projected_weight=2 * ratio
        )
        losses = self.weighting(predictions, power=4) * surrogate
        return losses, weight_statistics(ratio, x0_fake, predictions)

    def ratio(self, predictions: Predictions) -> Tensor:
        """A detached factor [B] of the projected term."""
        return torch.ones_like(predictions.sigma)


class UniInstructCode(SiD):
    """Uni-Instruct's forward KL as its public code has it: :class:`SiD` with the code's "ratio" r.

    The code (github.com/a-little-hoof/Uni_Instruct) has ``r = -L / (1 - L)`` with ``L = D l / mean|x_generated -
    x0_teacher|``, where l is the generator's adversarial loss, averaged over the batch, and D the number of dimensions.
    L is far above 1, so r is 1 to within a thousandth whatever the discriminator says. The paper's loss is
    :class:`onestep.objectives.uni_instruct.UniInstruct`. Without an adversarial term r is 1.
    """

    def ratio(self, predictions: Predictions) -> Tensor:
        if predictions.adversarial is None:
            return super().ratio(predictions)
        scaled = predictions.adversarial.detach().mean() * inverse_distance(predictions)
        return scaled / (scaled - 1)

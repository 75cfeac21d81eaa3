"""Score Distillation Sampling: follow the teacher's score with no fake score (Poole et al. 2022, arXiv 2209.14988)."""

import torch
from torch import Tensor

from onestep.noise import expand_like
from onestep.objectives.base import (
    Objective,
    Predictions,
    descend,
    require_x0_teacher,
    score_difference,
    weight_statistics,
)
from onestep.objectives.weighting import Weighting


class SDS(Objective):
    """The gradient ``E[-(score_p(x_sigma) - score of the noise added) dx/dtheta]`` (eq. 3 of the paper).

    The score of the noise is the score of an x0-prediction equal to ``x_generated``. This is therefore reverse KL's
    distribution matching with the sample in place of the fake score's prediction. Its noise-free limit is
    ``E_q[-log p]``, without an entropy term: every sample moves to a mode, and the generator loses its diversity.
    """

    needs_fake_score = False
    needs_ratio = False
    differentiates_scores = False

    def __init__(self, weighting: Weighting) -> None:
        self.weighting = weighting

    def __call__(self, predictions: Predictions) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [B] with the paper's gradient by ``x_generated`` times the weighting, and diagnostics."""
        x = predictions.x_generated
        factor = self.weighting(predictions, power=2)
        delta = score_difference(require_x0_teacher(predictions), x.detach(), predictions.sigma)
        return descend(x, -expand_like(factor, x) * delta), weight_statistics(torch.ones_like(factor), x, predictions)

"""Score Distillation Sampling: follow the teacher's score with no fake score (Poole et al. 2022, arXiv 2209.14988)."""

import torch
from torch import Tensor

from onestep.noise import expand_like
from onestep.objectives.base import Objective, Predictions, descend, score_difference, weight_statistics
from onestep.objectives.weighting import Weighting


class SDS(Objective):
    """The gradient ``E[-(score_p(x_sigma) - score of the noise added) dx/dtheta]`` (eq. 3 of the paper).

    The noise's own score is that of an x0-prediction equal to ``x_generated``, so this is the distribution matching of
    reverse KL with the fake score's prediction replaced by the sample itself. Its noise-free limit is the entropy-free
    ``E_q[-log p]``: every sample goes to a mode, and the generator's spread is lost.
    """

    needs_fake_score = False
    needs_ratio = False
    differentiates_scores = False

    def __init__(self, weighting: Weighting) -> None:
        self.weighting = weighting

    def __call__(self, predictions: Predictions) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [B], whose gradient by ``x_generated`` is that of the paper times the weighting, and diagnostics."""
        x = predictions.x_generated
        factor = self.weighting(predictions, power=2)
        delta = score_difference(predictions.x0_teacher, x.detach(), predictions.sigma)
        return descend(x, -expand_like(factor, x) * delta), weight_statistics(torch.ones_like(factor), x, predictions)

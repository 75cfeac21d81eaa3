"""The logistic GAN losses (Goodfellow et al. 2014, arXiv 1406.2661), per sample, and a GAN alone as an objective.

A discriminator has logits [B, P] of P positions or heads, and a sample's loss is the mean of theirs. A logit is
positive for samples that look real. At the optimum of :func:`discriminator_loss` it is the log density ratio of real to
generated samples, ``log r = log p/q``.
"""

import math

from torch import Tensor
from torch.nn.functional import softplus

from onestep.objectives.base import Objective, Predictions


def log_ratio_of(logits: Tensor) -> Tensor:
    """The estimate [B] of log p/q, the mean of a sample's ``logits`` [B, P]."""
    return logits.mean(1)


def generator_loss(logits: Tensor, bound: float = math.inf) -> Tensor:
    """The non-saturating loss [B], ``-log sigmoid(logit)``, for the ``logits`` [B, P] of generated samples.

    Logits beyond ``bound`` are clamped to it, and have no gradient.
    """
    return softplus(-logits.clamp(-bound, bound)).mean(1)


def discriminator_loss(logits_real: Tensor, logits_generated: Tensor) -> Tensor:
    """The logistic loss [B] for the logits [B, P] of real samples and of equally many generated samples."""
    return (softplus(-logits_real) + softplus(logits_generated)).mean(1)


class Adversarial(Objective):
    """No losses of its own: the adversarial term is the whole loss, as in LADD (arXiv 2403.12015) and D2O (2506.09376).

    There are no scores, so no fake score is trained, and the teacher is at most the host of the discriminator. With the
    optimal discriminator the generator descends ``KL(q||p) - 2 JS(p||q)`` at each noise level (Arjovsky and Bottou
    2017, arXiv 1701.04862, theorem 2.5).

    Raises ValueError if the predictions lack ``adversarial``.
    """

    needs_teacher = False
    needs_fake_score = False
    has_losses = False
    needs_adversarial = True

    def __call__(self, predictions: Predictions) -> tuple[None, dict[str, Tensor]]:
        """No losses and no diagnostics."""
        if predictions.adversarial is None:
            raise ValueError("the adversarial term is missing, which is the whole loss: set a gan_weight above 0")
        return None, {}

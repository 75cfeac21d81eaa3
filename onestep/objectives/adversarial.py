"""The logistic GAN losses (Goodfellow et al. 2014, arXiv 1406.2661), per sample.

A discriminator has logits [B, P] of P positions or heads, and a sample's loss is the mean of theirs. A logit is
positive for samples that look real. At the optimum of :func:`discriminator_loss` it is the log density ratio of real to
generated samples, ``log r = log p/q``.
"""

import math

from torch import Tensor
from torch.nn.functional import softplus


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

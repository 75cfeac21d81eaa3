"""The logistic GAN losses (Goodfellow et al. 2014, arXiv 1406.2661), per sample.

A discriminator's logit is ``log r = log p/q``, positive where a sample looks real: at the optimum of
:func:`discriminator_loss` it is the log density ratio of real to generated samples.
"""

from torch import Tensor
from torch.nn.functional import softplus


def generator_loss(log_ratio: Tensor) -> Tensor:
    """The non-saturating loss [B], ``-log sigmoid(log_ratio)``, of the logits [B] of generated samples."""
    return softplus(-log_ratio)


def discriminator_loss(logit_real: Tensor, logit_generated: Tensor) -> Tensor:
    """The logistic loss [B] of the logits of as many real as generated samples, [B] each."""
    return softplus(-logit_real) + softplus(logit_generated)

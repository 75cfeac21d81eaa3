"""The logistic GAN losses (Goodfellow et al. 2014, arXiv 1406.2661), per sample.

The logit is positive for samples that look real. At the optimum of :func:`discriminator_loss` it is the log density
ratio of real to generated samples, ``log r = log p/q``.
"""

from torch import Tensor
from torch.nn.functional import softplus


def generator_loss(log_ratio: Tensor) -> Tensor:
    """The non-saturating loss [B], ``-log sigmoid(log_ratio)``, for the logits [B] of generated samples."""
    return softplus(-log_ratio)


def discriminator_loss(logit_real: Tensor, logit_generated: Tensor) -> Tensor:
    """The logistic loss [B] for the logits [B] of real samples and of equally many generated samples."""
    return softplus(-logit_real) + softplus(logit_generated)

"""Denoising score matching: the training loss of the fake score on generated samples, and of a teacher on data."""

from torch import Tensor

from onestep.models.base import DenoiserNetwork
from onestep.noise import per_sample_sum


def denoising_loss(network: DenoiserNetwork, prediction: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """The mean squared x0-error [B], weighted by ``network.loss_weight(sigma)`` (arXiv 2206.00364, eq. 8).

    Without the weight, small sigma would contribute little to the loss.
    """
    return network.loss_weight(sigma) * per_sample_sum((prediction - x0) ** 2) / x0[0].numel()

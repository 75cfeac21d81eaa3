"""Denoising score matching, by which a fake score learns the generator's distribution and a teacher the data's."""

from torch import Tensor

from onestep.models.base import DenoiserNetwork
from onestep.noise import per_sample_sum


def denoising_loss(network: DenoiserNetwork, prediction: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """The mean squared x0-error [B] in the network's own weighting (arXiv 2206.00364, eq. 8).

    Unweighted, it would learn little at small sigma.
    """
    return network.loss_weight(sigma) * per_sample_sum((prediction - x0) ** 2) / x0[0].numel()

"""Denoising score matching: the training loss of the fake score on generated samples, and of a teacher on data."""

from typing import Literal

from torch import Tensor

from onestep.models.base import DenoiserNetwork
from onestep.noise import per_sample_sum

#: The prediction whose squared error is the loss: by the network's own training, or of x0, of the noise, or of v.
ErrorWeight = Literal["network", "x0", "noise", "v"]


def error_weight(network: DenoiserNetwork, sigma: Tensor, weight: ErrorWeight) -> Tensor:
    """The weight [B] of the squared x0-error at ``sigma`` [B].

    An error e of x0 is an error ``e / sigma`` of the noise. The velocity of variance-preserving noise (Salimans and Ho
    2022, arXiv 2202.00512, sec. 4) has the error ``e sqrt(1 + 1/sigma^2)``.
    """
    if weight == "network":
        return network.loss_weight(sigma)
    return {"x0": sigma**0, "noise": sigma**-2, "v": 1 + sigma**-2}[weight]


def denoising_loss(prediction: Tensor, x0: Tensor, weight: Tensor) -> Tensor:
    """The mean squared error [B] of an x0-``prediction`` [B, ...], times a ``weight`` [B].

    With the weight of the network's own training it is that loss (arXiv 2206.00364, eq. 8). Without a weight, small
    sigma would contribute little to it.
    """
    return weight * per_sample_sum((prediction - x0) ** 2) / x0[0].numel()

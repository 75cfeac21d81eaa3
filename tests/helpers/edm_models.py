"""Tiny networks of EDM with random weights."""

from typing import Any, TypeVar

import torch
from torch import nn

from onestep.models.edm.denoiser import EDMDenoiser

Network = TypeVar("Network", bound=nn.Module)


def tiny_denoiser(
    seed: int = 0, label_dim: int = 3, channels: int = 1, architecture: Any = "SongUNet", **options: object
) -> EDMDenoiser:
    """A class-conditional denoiser of 8 x 8 pixels in eval mode, all of whose weights are random.

    A fresh network ends in a layer that is nearly zero, which would hide almost any mistake.
    """
    defaults: dict[str, object] = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
    options = defaults | {"attn_resolutions": []} | options
    return randomized(EDMDenoiser((channels, 8, 8), label_dim, architecture=architecture, options=options), seed)


def randomized(network: Network, seed: int = 0) -> Network:
    """The ``network`` with random weights, in eval mode."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.copy_(torch.randn(parameter.shape, generator=random) / fan_in**0.5)
    return network.eval()

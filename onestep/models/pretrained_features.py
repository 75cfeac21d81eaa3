"""The features of a pretrained network as a discriminator's input (projected discriminators)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.ranges import ImageShape


class PretrainedFeatures(nn.Module):
    """The host of heads on the frozen features of a pretrained network (Sauer et al. 2021, arXiv 2111.01007).

    Samples are resized to the network's resolution, bicubic with antialiasing, and are differentiable throughout. The
    features know neither noise level nor condition: a head on them is for samples at one level, such as clean ones.

    Args:
        network: a :class:`onestep.metrics.features.FeatureNetwork` with feature maps.
        image_shape: (C, H, W) of the samples, in [-1, 1].

    Attributes:
        feature_shapes: (F, h, w) of the feature maps, from the first layer to the last.

    Raises:
        ValueError: for a network without feature maps, or of other channels than the samples; one channel is repeated.
    """

    def __init__(self, network: Any, image_shape: ImageShape) -> None:
        super().__init__()
        self.network = network
        self.eval().requires_grad_(False)
        channels, *sides = network.image_shape or (3, *image_shape[1:])
        if image_shape[0] not in (1, channels):
            raise ValueError(
                f"discriminator.network: the {network.title} takes {channels} channels, and the samples have "
                f"{image_shape[0]}: choose another network"
            )
        self.channels, self.sides = channels, sides
        shape = 1, *image_shape
        with torch.no_grad():
            maps = self(torch.zeros(shape), torch.zeros(1), {})
        self.feature_shapes = [(one.shape[1], one.shape[2], one.shape[3]) for one in maps]

    def forward(
        self, x_sigma: Tensor, sigma: Tensor, condition: Condition, outputs: str = "features", levels: Any = None
    ) -> tuple[Tensor, ...]:
        """The feature maps [B, F, h, w] of the ``levels``, None for all, of samples [B, C, H, W]."""
        pixels = 127.5 * (x_sigma + 1)
        if [*pixels.shape[2:]] != self.sides:
            pixels = F.interpolate(pixels, self.sides, mode="bicubic", antialias=True)
        maps = self.network.maps(pixels.expand(-1, self.channels, -1, -1))
        return tuple(maps if levels is None else (maps[level] for level in levels))

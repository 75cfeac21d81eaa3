"""The features of a pretrained network, differentiable by the samples: for discriminators and terms of the loss."""

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
        check_channels(network, image_shape[0], "discriminator.network")
        shape = 1, *image_shape
        with torch.no_grad():
            maps = self(torch.zeros(shape), torch.zeros(1), {})
        self.feature_shapes = [(one.shape[1], one.shape[2], one.shape[3]) for one in maps]

    def forward(
        self, x_sigma: Tensor, sigma: Tensor, condition: Condition, outputs: str = "features", levels: Any = None
    ) -> tuple[Tensor, ...]:
        """The feature maps [B, F, h, w] of the ``levels``, None for all, of samples [B, C, H, W]."""
        maps = self.network.maps(as_pixels(x_sigma, self.network))
        return tuple(maps if levels is None else (maps[level] for level in levels))


def check_channels(network: Any, channels: int, setting: str) -> None:
    """Check that the feature network of a ``setting`` takes samples of so many ``channels``; one is repeated.

    Raises:
        ValueError: if it does not.
    """
    taken = (network.image_shape or (3,))[0]
    if channels not in (1, taken):
        raise ValueError(
            f"{setting}: the {network.title} takes {taken} channels, and the samples have {channels}: choose another "
            "network"
        )


def as_pixels(x: Tensor, network: Any) -> Tensor:
    """Samples [B, C, H, W] in [-1, 1] as images of the ``network``'s size and channels, floats in [0, 255]."""
    channels, *sides = network.image_shape or (3, *x.shape[2:])
    pixels = 127.5 * (x + 1)
    if [*pixels.shape[2:]] != sides:
        pixels = F.interpolate(pixels, sides, mode="bicubic", antialias=True)
    return pixels.expand(-1, channels, -1, -1)

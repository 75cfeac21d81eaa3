"""The distance of images in the feature maps of a frozen network, LPIPS's with its network and weights."""

from typing import Any

import torch
from torch import Tensor, nn

from onestep.models.pretrained_features import as_pixels, check_channels
from onestep.precision import without_bf16
from onestep.reading import one_line

_LEAST = 1e-8  # added to a squared norm: places without any feature have a gradient


class PerceptualDistance(nn.Module):
    """The squared distance of feature maps that are scaled to norm 1 over channels (arXiv 1801.03924, eq. 1).

    It is weighted by channel, averaged over places and summed over layers, and differentiable in the images.

    Args:
        network: a :class:`onestep.metrics.features.FeatureNetwork` with feature maps; frozen here. Its ``map_weights``
            weight the channels; None for 1.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.eval().requires_grad_(False)

    def check(self, image_shape: tuple[int, int, int], name: str) -> None:
        """Check that the network takes images of this shape.

        Raises:
            ValueError: with the ``name`` of the setting.
        """
        channels, height, width = image_shape
        check_channels(self.network, channels, name)
        try:  # fewer pixels than a kernel, and sides that patches do not divide
            with torch.no_grad():
                self(images := torch.zeros(1, *image_shape), images)
        except RuntimeError as error:
            raise ValueError(
                f"{name}: the {self.network.title} takes no images of {height}x{width} ({one_line(error, 200)}): "
                "choose another network"
            ) from error

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distances [B], float32, of images [B, C, H, W] in [-1, 1], which are resized to the network's size."""
        with without_bf16(self.network, a.device):  # the maps are subtracted
            ours, theirs = (self.network.maps(as_pixels(x, self.network)) for x in (a, b))
        weights = self.network.map_weights or [None] * len(ours)
        total = torch.zeros(len(a), device=a.device)
        for one, other, weight in zip(ours, theirs, weights, strict=True):
            squares = (_unit(one) - _unit(other)).square()
            if weight is not None:
                squares = squares * weight.to(squares)[:, None, None]
            total = total + squares.sum(1).mean((1, 2))
        return total


def _unit(maps: Tensor) -> Tensor:
    """Maps [B, F, h, w] of norm 1 over channels, in float32 whatever the network's precision is."""
    maps = maps.float()
    return maps / (maps.square().sum(1, keepdim=True) + _LEAST).sqrt()

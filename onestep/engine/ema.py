"""The exponential moving average of a network's weights, with a half-life in images."""

from typing import Generic

import torch
from torch import Tensor

from onestep.models.base import Network, copy_trained
from onestep.ranges import Positive, checked


@checked
class EMA(Generic[Network]):
    """An exponential moving average of ``network``'s weights.

    ``average`` is a copy of the network that shares its frozen weights.

    Args:
        network: the averaged network; no reference to it is kept.
        halflife: images after which an old weight counts half, after the ramp-up.
        rampup: upper bound of the half-life as a fraction of the images seen so far (EDM's training loop: 0.05). Early
            in a run the average thus forgets the initial weights.
    """

    def __init__(self, network: Network, halflife: Positive, rampup: Positive) -> None:
        self.average = copy_trained(network).eval().requires_grad_(False)
        self.halflife, self.rampup = halflife, rampup

    def decay(self, images_seen: int, batch_size: int) -> float:
        """The weight of the old average in an update with ``batch_size`` images, after ``images_seen`` images."""
        halflife = min(self.halflife, self.rampup * images_seen)
        return 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0

    @torch.no_grad()
    def update(self, network: Network, images_seen: int, batch_size: int) -> None:
        """Move the average towards ``network``. Call it after each step of the network, and not after skipped ones."""
        pairs = zip(self.average.parameters(), network.parameters(), strict=True)
        trained = [(average, value) for average, value in pairs if value.requires_grad]
        averages: list[Tensor] = [average for average, _ in trained]
        values: list[Tensor] = [value for _, value in trained]
        torch._foreach_lerp_(averages, values, 1 - self.decay(images_seen, batch_size))
        for average, value in zip(self.average.buffers(), network.buffers(), strict=True):
            average.copy_(value)

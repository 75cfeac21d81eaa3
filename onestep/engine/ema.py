"""The exponential moving average of a network's weights, whose half-life is counted in images."""

from typing import Generic

import torch
from torch import Tensor

from onestep.models.base import Network, copy_trained


class EMA(Generic[Network]):
    """A copy of ``network`` that follows it; ``average`` is the copy, which shares what is frozen.

    Args:
        network: the network to follow; not kept.
        halflife: images after which half of the average is newer, once ramped up.
        rampup: at first the half-life is this share of the images seen so far (EDM's training loop, 0.05), so that the
            average forgets the initial weights early in a run.
    """

    def __init__(self, network: Network, halflife: float, rampup: float) -> None:
        if halflife <= 0 or rampup <= 0:
            raise ValueError(f"EMA needs halflife > 0 and rampup > 0, got halflife={halflife}, rampup={rampup}")
        self.average = copy_trained(network).eval().requires_grad_(False)
        self.halflife, self.rampup = halflife, rampup

    def decay(self, images_seen: int, batch_size: int) -> float:
        """The weight of the old average in an update by ``batch_size`` images after ``images_seen`` of them."""
        halflife = min(self.halflife, self.rampup * images_seen)
        return 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0

    @torch.no_grad()
    def update(self, network: Network, images_seen: int, batch_size: int) -> None:
        """Move the average towards ``network``; call it only when the network itself has moved."""
        pairs = zip(self.average.parameters(), network.parameters(), strict=True)
        trained = [(average, value) for average, value in pairs if value.requires_grad]
        averages: list[Tensor] = [average for average, _ in trained]
        values: list[Tensor] = [value for _, value in trained]
        torch._foreach_lerp_(averages, values, 1 - self.decay(images_seen, batch_size))
        for average, value in zip(self.average.buffers(), network.buffers(), strict=True):
            average.copy_(value)

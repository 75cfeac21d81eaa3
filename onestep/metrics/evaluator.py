"""Scores samples by several metrics from one pass through the feature network."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from onestep.metrics.features import to_uint8


class Metric(Protocol):
    """A figure of merit of generated features [N, D] against real ones [M, D]."""

    def __call__(self, real: Tensor, generated: Tensor) -> float: ...


class Reference(Protocol):
    """The real images, of which no more than a batch needs to be in memory."""

    image_shape: tuple[int, int, int]

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """All images in their order, [<= batch_size, C, H, W] in [-1, 1]."""


class Evaluator:
    """Computes every metric on images, quantised to uint8 as a published figure's are.

    Args:
        features: a network from uint8 images [B, C, H, W] to features [B, D], with its ``image_shape``; None where the
            samples are points, [B, D, 1, 1], which are their own features, as they are.
        metrics: the metrics by name.
        reference: the real images.
        device: where the feature network runs.

    Raises:
        ValueError: if the feature network takes images of another shape than the reference's.
    """

    def __init__(
        self,
        features: nn.Module | None,
        metrics: dict[str, Metric],
        reference: Reference,
        device: torch.device | str = "cpu",
    ) -> None:
        self.features, self.metrics, self.device = features, metrics, device
        if not metrics:  # nothing is scored, and so no reference read
            return
        if features is not None:
            expected, given = tuple(features.image_shape), tuple(reference.image_shape)  # type: ignore[arg-type]
            if expected != given:
                raise ValueError(f"the feature network takes images {expected}, the data has {given}: choose another")
            self.features = features.to(device)
        elif reference.image_shape[1:] != (1, 1):
            raise ValueError("images are scored in the features of a network, and there is none: choose features=...")
        self.real = self.extract(reference.batches(1000))

    @torch.no_grad()
    def extract(self, batches: Iterable[Tensor]) -> Tensor:
        """Features [N, D] on the CPU of batches of images [B, C, H, W] in [-1, 1], or of points."""
        if self.features is None:
            return torch.cat([batch.flatten(1).cpu() for batch in batches])
        return torch.cat([self.features(to_uint8(batch).to(self.device)).cpu() for batch in batches])

    def __call__(self, batches: Iterable[Tensor]) -> dict[str, float]:
        """Every metric by name, on all images of ``batches`` together."""
        if not self.metrics:
            return {}
        generated = self.extract(batches)
        return {name: metric(self.real, generated) for name, metric in self.metrics.items()}

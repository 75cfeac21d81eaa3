"""Terms of the generator's loss that compare a sample with the ground truth of its condition."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from onestep.noise import per_sample_sum
from onestep.objectives.terms import GeneratorTerm, TermInputs
from onestep.precision import without_bf16
from onestep.ranges import Positive, PositiveRate, checked

#: Of two numbers: their absolute difference d, its square, or ``sqrt(d^2 + epsilon^2)`` (arXiv 1704.03915).
Distance = Literal["l1", "l2", "charbonnier"]


class PairedTerm(GeneratorTerm):
    """A term of the generator's loss, for data whose real samples are the ground truth of their conditions."""

    @abstractmethod
    def __call__(self, x_generated: Tensor, x_real: Tensor) -> Tensor:
        """The losses [B] of samples [B, C, H, W] against the ground truth of their conditions, in data units."""

    def losses(self, inputs: TermInputs) -> Tensor:
        assert inputs.x_real is not None  # data without images was rejected
        return self(inputs.x_generated, inputs.x_real)


class FeatureTerm(PairedTerm):
    """A distance in the features that a frozen network has of a sample and of its ground truth, in float32.

    Attributes:
        network: the network.
    """

    reads_pixels = True
    network: nn.Module

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The network of the features."""
        return {"network": self.network}

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """The features [B, ...] of samples [B, C, H, W] in [-1, 1]."""

    @abstractmethod
    def compare(self, generated: Tensor, real: Tensor) -> Tensor:
        """The losses [B] of the features of samples and of their ground truth."""

    def __call__(self, x_generated: Tensor, x_real: Tensor) -> Tensor:
        with without_bf16(self.network, x_generated.device):
            generated = self.features(x_generated)
            with torch.no_grad():
                real = self.features(x_real)
        return self.compare(generated, real)


@checked
class Reconstruction(PairedTerm):
    """The mean ``distance`` of a sample's values from those of the ground truth.

    Alone, "l2" is minimised by the posterior mean ``E[x | y]``, "l1" by the median of each value.

    Args:
        distance: see :data:`Distance`.
        weight: of the term.
        epsilon: of "charbonnier", in data units.
    """

    def __init__(self, distance: Distance, weight: PositiveRate, epsilon: Positive) -> None:
        self.distance, self.weight, self.epsilon = distance, weight, epsilon

    def __call__(self, x_generated: Tensor, x_real: Tensor) -> Tensor:
        return mean_distance(x_generated, x_real, self.distance, self.epsilon)


def mean_distance(a: Tensor, b: Tensor, distance: Distance, epsilon: float) -> Tensor:
    """The mean ``distance`` [B] of the values of ``a`` from those of ``b``, both [B, ...].

    Raises:
        ValueError: for different shapes, which would broadcast.
    """
    if a.shape != b.shape:
        raise ValueError(f"expected samples of the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    difference = a - b
    distances = {
        "l1": difference.abs,
        "l2": difference.square,
        "charbonnier": lambda: (difference.square() + epsilon**2).sqrt(),
    }
    return per_sample_sum(distances[distance]()) / a[0].numel()

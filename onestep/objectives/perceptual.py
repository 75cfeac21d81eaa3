"""The distance of samples from the ground truth in the features of a frozen network, such as LPIPS's."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from onestep.models.perceptual import PerceptualDistance
from onestep.objectives.reconstruction import PairedTerm
from onestep.ranges import PositiveRate, checked


@checked
class Perceptual(PairedTerm):
    """The :class:`PerceptualDistance` of a sample from the ground truth; with the network of LPIPS it is LPIPS.

    Args:
        network: a :class:`onestep.metrics.features.FeatureNetwork` with feature maps.
        weight: of the term.

    Raises:
        ValueError: without a network.
    """

    reads_pixels = True

    def __init__(self, network: Any, weight: PositiveRate) -> None:
        if not isinstance(network, nn.Module):  # features of none are a mapping
            raise ValueError(
                "terms.lpips.network or terms.perceptual.network: got no network: choose lpips_vgg, lpips_alex, "
                "digits, fashion, local or dinov2"
            )
        self.distance, self.weight = PerceptualDistance(network), weight

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The network of the features."""
        return {"network": self.distance.network}

    def __call__(self, x_generated: Tensor, x_real: Tensor) -> Tensor:
        return self.distance(x_generated, x_real)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        self.distance.check(image_shape, "terms.lpips.network or terms.perceptual.network")

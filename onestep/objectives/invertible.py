"""The distance of details in the space of an invertible network (HF-Diff, arXiv 2411.13548)."""

from torch import Tensor

from onestep.models.invertible import InvertibleNetwork
from onestep.objectives.reconstruction import Distance, FeatureTerm, mean_distance
from onestep.ranges import Positive, PositiveRate, checked


@checked
class InvertibleDetails(FeatureTerm):
    """The mean ``distance`` of the details of a sample from those of the ground truth, in a network's space.

    The network maps the details of real images to N(0, I) given their low band, see
    :class:`onestep.models.invertible.InvertibleNetwork`: a difference weighs more where details are small. As the
    network loses nothing, this is close to a squared error whose weights depend on the image: it alone makes no details
    that the condition leaves open. One channel is repeated.

    Args:
        network: the invertible network.
        distance: see :data:`onestep.objectives.reconstruction.Distance`.
        weight: of the term.
        epsilon: of "charbonnier", in standard deviations of details.
    """

    network: InvertibleNetwork

    def __init__(self, network: InvertibleNetwork, distance: Distance, weight: PositiveRate, epsilon: Positive) -> None:
        self.network = network.eval().requires_grad_(False)
        self.distance, self.weight, self.epsilon = distance, weight, epsilon

    def features(self, x: Tensor) -> Tensor:
        codes: Tensor = self.network(x.expand(-1, self.network.channels, -1, -1))
        return codes

    def compare(self, generated: Tensor, real: Tensor) -> Tensor:
        return mean_distance(generated, real, self.distance, self.epsilon)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        channels, *sides = image_shape
        if channels not in (1, self.network.channels):
            raise ValueError(
                f"terms.invertible.network: it takes {self.network.channels} channels, and the samples have {channels}"
                ": train one by onestep pretrain invertible"
            )
        if any(side % 2 for side in sides):
            raise ValueError(
                f"terms.invertible: samples of {sides[0]}x{sides[1]} cannot be halved: use even sides, or leave it out "
                "of terms=[...]"
            )

"""Details of images: the high bands of the Haar transform."""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from onestep.haar import haar
from onestep.objectives.reconstruction import Distance, PairedTerm, mean_distance
from onestep.ranges import Positive, PositiveRate, checked


@checked
class HaarDetails(PairedTerm):
    """The mean ``distance`` of the detail bands of a sample from those of the ground truth.

    The bands are linear in the image. With "l2" the term thus weights frequencies within a squared error, and its
    minimum is the details of the posterior mean: it alone makes no details that the condition leaves open.

    Args:
        distance: see :data:`onestep.objectives.reconstruction.Distance`.
        weight: of the term.
        levels: of the transform; each halves the sides.
        epsilon: of "charbonnier", in data units.
    """

    def __init__(
        self, distance: Distance, weight: PositiveRate, levels: Annotated[int, Ge(1), Le(10)], epsilon: Positive
    ) -> None:
        self.distance, self.weight, self.levels, self.epsilon = distance, weight, levels, epsilon

    def __call__(self, x_generated: Tensor, x_real: Tensor) -> Tensor:
        generated, real = (
            torch.cat([band.flatten(1) for band in haar(x, self.levels)[1]], 1) for x in (x_generated, x_real)
        )
        return mean_distance(generated, real, self.distance, self.epsilon)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        sides = image_shape[1:]
        if any(side % 2**self.levels for side in sides):
            raise ValueError(
                f"terms.haar.levels={self.levels}: samples of {sides[0]}x{sides[1]} cannot be halved so often: set "
                f"fewer levels, or use sides that {2**self.levels} divides"
            )

"""Samples of a Gaussian mixture as a dataset."""

from typing import Annotated

from annotated_types import Ge, Le

from onestep.data.dataset import ImagesInMemory
from onestep.ranges import Seed
from onestep.seeding import seeded_rng
from onestep.toy.gaussian_mixture import GaussianMixture

Points = Annotated[int, Ge(1), Le(10**7)]


class MixtureSamples(ImagesInMemory):
    """``count`` independent samples [D, 1, 1] of the ``mixture``, determined by ``seed``."""

    def __init__(self, mixture: GaussianMixture, count: Points, seed: Seed) -> None:
        super().__init__(mixture.sample(count, seeded_rng(seed))[:, :, None, None])

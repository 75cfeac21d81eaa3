"""Samples of a Gaussian mixture as a dataset."""

from onestep.data.dataset import ImagesInMemory
from onestep.seeding import seeded_rng
from onestep.toy.gaussian_mixture import GaussianMixture


class MixtureSamples(ImagesInMemory):
    """``count`` independent samples [D, 1, 1] of the ``mixture``, determined by ``seed``."""

    def __init__(self, mixture: GaussianMixture, count: int, seed: int) -> None:
        super().__init__(mixture.sample(count, seeded_rng(seed))[:, :, None, None])

"""The kernel distance of two sets of features: with Inception features it is the KID (arXiv 1801.01401)."""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from onestep.metrics.extraction import Kind
from onestep.metrics.features import FeatureNetwork
from onestep.ranges import Seed, Steps, checked
from onestep.seeding import seeded_rng

SubsetSize = Annotated[int, Ge(2), Le(10**5)]


@checked
class KernelDistance:
    """The unbiased squared MMD (Gretton et al. 2012, eq. 3) with the kernel ``(x . y / D + 1)^3``.

    The value is a mean over random subsets of real and generated samples.

    Args:
        subsets: number of subsets.
        subset_size: real and generated samples in a subset; at most the number of samples.
        seed: seed of the subsets.
        features: the metric's feature network; None for the evaluator's.
    """

    reads: Kind = "vectors"
    title = "kernel distance (KID)"
    higher_is_better = False
    fewest = 2

    def __init__(
        self, subsets: Steps, subset_size: SubsetSize, seed: Seed, features: FeatureNetwork | None = None
    ) -> None:
        self.subsets, self.subset_size, self.seed, self.features = subsets, subset_size, seed, features

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """The distance between ``real`` [M, D] and ``generated`` [N, D] features; unbiased, so it can be negative.

        Raises:
            ValueError: for fewer than two real or generated samples.
        """
        size = min(self.subset_size, len(real), len(generated))
        if size < 2:
            raise ValueError(f"kid needs at least 2 real and 2 generated samples, got {len(real)} and {len(generated)}")
        rng = seeded_rng(self.seed)
        total = 0.0
        for _ in range(self.subsets):
            subset = [side[torch.randperm(len(side), generator=rng)[:size]].double() for side in (real, generated)]
            total += float(poly_mmd(*subset))
        return total / self.subsets

"""The kernel distance of two sets of features: with Inception features it is the KID (arXiv 1801.01401)."""

import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from onestep.metrics.extraction import Kind
from onestep.metrics.features import FeatureNetwork
from onestep.seeding import seeded_rng


class KernelDistance:
    """The unbiased squared MMD (Gretton et al. 2012, eq. 3) with the kernel ``(x . y / D + 1)^3``.

    Averaged over random subsets of both sides.

    Args:
        subsets: how many.
        subset_size: samples of each side in one; fewer where there are fewer.
        seed: seed of the subsets.
        features: its own feature network; None for that of all metrics.
    """

    reads: Kind = "vectors"
    title = "kernel distance (KID)"
    higher_is_better = False

    def __init__(self, subsets: int, subset_size: int, seed: int, features: FeatureNetwork | None = None) -> None:
        if subsets < 1 or subset_size < 2:
            raise ValueError(f"expected subsets >= 1 and subset_size >= 2, got {subsets} and {subset_size}")
        self.subsets, self.subset_size, self.seed, self.features = subsets, subset_size, seed, features

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """The distance between ``real`` [M, D] and ``generated`` [N, D] features; it can be a little below 0.

        Raises:
            ValueError: with fewer than two samples on a side.
        """
        size = min(self.subset_size, len(real), len(generated))
        if size < 2:
            raise ValueError(f"a kernel distance needs 2 samples of each side, got {len(real)} and {len(generated)}")
        random = seeded_rng(self.seed)
        total = 0.0
        for _ in range(self.subsets):
            subset = [side[torch.randperm(len(side), generator=random)[:size]].double() for side in (real, generated)]
            total += float(poly_mmd(*subset))
        return total / self.subsets

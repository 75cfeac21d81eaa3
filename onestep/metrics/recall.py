"""The share of the real data's variety that the samples cover (Kynkaanniemi et al. 2019, arXiv 1904.06991)."""

import torch
from torch import Tensor


class Recall:
    """The share of real samples that lie within the ``k``-th nearest neighbour's distance of some generated sample.

    Args:
        k: neighbour that sets each generated sample's radius, itself not counted.
    """

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ValueError(f"recall needs k >= 1 neighbours, got k={k}")
        self.k = k

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """Recall in [0, 1] of ``generated`` [N, D] against ``real`` [M, D] features.

        Raises:
            ValueError: if there are not more than ``k`` generated samples.
        """
        if len(generated) <= self.k:
            raise ValueError(f"recall with k={self.k} needs more than {self.k} generated samples, got {len(generated)}")
        # torch.cdist goes by squared norms, which in float32 loses the digits of features far from the origin.
        real, generated = real.double(), generated.double()
        covered = torch.zeros(len(real), dtype=torch.bool)
        for chunk in generated.split(1000):  # bounds the memory of the distances
            # The nearest is the sample itself, so the k-th neighbour is the (k + 1)-th smallest.
            radius = torch.cdist(chunk, generated).topk(self.k + 1, largest=False).values[:, -1]
            covered |= (torch.cdist(real, chunk) <= radius).any(dim=1)
        return covered.double().mean().item()

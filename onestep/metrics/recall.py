"""Precision and recall by nearest neighbours (Kynkaanniemi et al. 2019, arXiv 1904.06991)."""

from typing import Annotated, ClassVar

from annotated_types import Ge, Le
from torch import Tensor

from onestep.metrics.extraction import Kind
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.neighbours import count_within, nearest_distances
from onestep.ranges import checked

Neighbours = Annotated[int, Ge(1), Le(1000)]


@checked
class Recall:
    """The fraction of real samples within the ``k``-th nearest neighbour's distance of some generated sample.

    Args:
        k: index of the neighbour that sets each generated sample's radius; the sample itself does not count.
        features: the metric's feature network; None for the evaluator's.
    """

    reads: Kind = "vectors"
    title = "recall"
    higher_is_better = True

    def __init__(self, k: Neighbours, features: FeatureNetwork | None = None) -> None:
        self.k, self.features, self.fewest = k, features, k + 1

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """Recall in [0, 1] of ``generated`` [N, D] against ``real`` [M, D] features.

        Raises:
            ValueError: for at most ``k`` generated samples.
        """
        check_count("recall", self.k, generated=len(generated))
        inside, _ = count_within(real, generated, nearest_distances(generated, self.k)[:, -1])
        return (inside > 0).double().mean().item()


@checked
class PRDC:
    """Precision and recall, and the density and coverage of Naeem et al. 2020 (arXiv 2002.09797), eq. 4 and 6.

    Precision is recall with real and generated samples exchanged: the fraction of generated samples within the
    ``k``-th nearest neighbour's distance of some real sample. Density is the mean number of such balls around a
    generated sample, divided by ``k``; it is 1 for the real distribution. Coverage is the fraction of real samples'
    balls that contain a generated sample.

    Args:
        k: index of the neighbour that sets the radii of precision and recall; the sample itself does not count.
        k_density: the same for density and coverage.
        features: the metric's feature network; None for the evaluator's.
    """

    reads: Kind = "vectors"
    title: ClassVar = {key: key for key in ("precision", "recall", "density", "coverage")}
    higher_is_better = True

    def __init__(self, k: Neighbours, k_density: Neighbours, features: FeatureNetwork | None = None) -> None:
        self.k, self.k_density, self.features = k, k_density, features
        self.fewest = max(k, k_density) + 1

    def __call__(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """``precision``, ``recall``, ``density`` and ``coverage`` of ``generated`` [N, D] against ``real`` [M, D].

        Raises:
            ValueError: for at most ``max(k, k_density)`` real or generated samples.
        """
        check_count("precision", max(self.k, self.k_density), real=len(real), generated=len(generated))
        of_real = nearest_distances(real, max(self.k, self.k_density))
        precise, _ = count_within(generated, real, of_real[:, self.k - 1])
        recalled, _ = count_within(real, generated, nearest_distances(generated, self.k)[:, -1])
        dense, covered = count_within(generated, real, of_real[:, self.k_density - 1])
        return {
            "precision": (precise > 0).double().mean().item(),
            "recall": (recalled > 0).double().mean().item(),
            "density": dense.double().mean().item() / self.k_density,
            "coverage": (covered > 0).double().mean().item(),
        }


def check_count(name: str, k: int, **counts: int) -> None:
    """Raises ValueError if one of ``counts`` is at most ``k``, so that there is no ``k``-th neighbour."""
    for side, count in counts.items():
        if count <= k:
            raise ValueError(f"{name} with k={k} needs more than {k} {side} samples, got {count}")

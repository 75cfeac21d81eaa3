"""Mean and covariance of features, accumulated in float64 over batches and processes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from onestep.files import atomic_file
from onestep.precision import double, float64_device
from onestep.processes import sum_over_processes
from onestep.reading import read_arrays


@dataclass(frozen=True)
class Moments:
    """The moments of a set of features, for a Frechet distance.

    Args:
        mean: [D] float64.
        covariance: [D, D] float64, unbiased.
        count: number of features; None if unknown, as for published files.
        description: their name in the record of a metric.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None = None
    description: str = ""

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """The moments of ``features`` [N, D], N >= 2."""
        return cls(*FeatureStatistics(features.shape[1]).update(features).parts())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read ``mu`` [D] and ``sigma`` [D, D] of an .npz of EDM's ``fid.py ref``, as NVIDIA publishes them.

        Nothing in the file is unpickled.

        Raises:
            ValueError: if there is no such file, or it holds no finite mean and covariance.
        """
        arrays = read_arrays(path, ("mu", "sigma"))
        if len(arrays) < 2 or any(array.dtype.kind != "f" for array in arrays.values()):
            raise ValueError(f"{path}: expected floating-point mu and sigma, got {_shapes(arrays)}")
        mean, covariance = (arrays[key].astype(np.float64) for key in ("mu", "sigma"))
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
            raise ValueError(f"{path}: expected mu [D] and sigma [D, D], got {_shapes(arrays)}")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError(f"{path}: mu or sigma is not finite; compute the file again")
        _check_covariance(path, torch.from_numpy(covariance))
        return cls(torch.from_numpy(mean), torch.from_numpy(covariance), description=Path(path).name)

    def save(self, path: str | Path) -> None:
        """Write ``mu`` and ``sigma`` as an .npz for EDM's ``fid.py calc``."""
        with atomic_file(path) as temporary, temporary.open("wb") as file:  # numpy appends .npz to names, not to files
            np.savez(file, mu=self.mean.numpy(), sigma=self.covariance.numpy())


def _shapes(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} of {array.dtype} {list(array.shape)}" for name, array in arrays.items())


def _check_covariance(path: str | Path, covariance: Tensor) -> None:
    """Check that ``covariance`` [D, D] is one, up to the rounding of float32: symmetric, with no negative eigenvalue.

    Raises:
        ValueError: with the ``path`` of its file.
    """
    scale = covariance.abs().max()
    if (covariance - covariance.T).abs().max() > 1e-4 * scale:
        raise ValueError(f"{path}: sigma is not symmetric, so it is no covariance; compute the file again")
    shifted = (covariance + covariance.T) / 2 + torch.eye(len(covariance), dtype=torch.float64) * 1e-5 * scale
    if scale > 0 and torch.linalg.cholesky_ex(shifted).info > 0:
        raise ValueError(f"{path}: sigma has negative eigenvalues, so it is no covariance; compute the file again")


class FeatureStatistics:
    """Sums of D-dimensional features and of their products, accumulated in float64 like EDM's fid.py."""

    def __init__(self, dimensions: int, device: torch.device | str = "cpu") -> None:
        device = float64_device(torch.device(device))
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.sum = torch.zeros(dimensions, dtype=torch.float64, device=device)
        self.products = torch.zeros(dimensions, dimensions, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> Self:
        """Add features [B, D]."""
        features = double(features).to(self.sum.device)
        self.count += len(features)
        self.sum += features.sum(0)
        self.products.addmm_(features.T, features)
        return self

    def reduce(self) -> Self:
        """Add the sums of the other processes. Every process must call it."""
        for name in ("count", "sum", "products"):
            setattr(self, name, sum_over_processes(getattr(self, name)))
        return self

    def parts(self) -> tuple[Tensor, Tensor, int]:
        """Mean [D], unbiased covariance [D, D] and count, on the CPU.

        Raises:
            ValueError: for fewer than two features, or for features that are not finite.
        """
        count = int(self.count)
        if count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {count}")
        mean = self.sum / count
        covariance = (self.products - count * torch.outer(mean, mean)) / (count - 1)
        if not covariance.isfinite().all():
            raise ValueError("some features are not finite: check the samples and the weights of the feature network")
        return mean.cpu(), covariance.cpu(), count

    def moments(self) -> Moments:
        """The moments of the added features."""
        return Moments(*self.parts())

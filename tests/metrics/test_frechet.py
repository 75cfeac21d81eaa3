"""The Frechet distance against EDM's own code and scipy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from onestep.metrics.frechet import FrechetDistance


def test_equals_the_original_code(data_folder: Path) -> None:
    """8.6304786 is what EDM's fid.py computes from these random features."""
    real, generated = (
        torch.from_numpy(np.load(data_folder / f"fid_random64_{name}.npy")) for name in ("real", "generated")
    )
    assert FrechetDistance()(real, generated) == pytest.approx(8.630478593676743, rel=1e-6)
    assert FrechetDistance()(generated, real) == pytest.approx(8.630478593676782, rel=1e-6)


def by_scipy(real: np.ndarray, generated: np.ndarray) -> float:
    cov_real, cov_generated = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    mean_term = np.square(real.mean(0) - generated.mean(0)).sum()
    return float(mean_term + np.trace(cov_real + cov_generated - 2 * sqrtm(cov_real @ cov_generated).real))


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_equals_scipy_on_correlated_features(offset: float) -> None:
    random = np.random.default_rng(0)
    real, generated = (random.normal(size=(n, 12)) @ random.normal(size=(12, 12)) + offset for n in (300, 200))
    expected = by_scipy(real, generated)
    assert expected > 1
    assert FrechetDistance()(torch.from_numpy(real), torch.from_numpy(generated)) == pytest.approx(expected, rel=1e-8)


def test_shifted_copy_is_at_the_shift_squared() -> None:
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.arange(8, dtype=torch.float64) / 10
    assert FrechetDistance()(features, features) == pytest.approx(0, abs=1e-9)
    assert FrechetDistance()(features, features + shift) == pytest.approx(1.4, rel=1e-9)

"""The Frechet distance against EDM's code, scipy and torchmetrics; its statistics over batches and processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from onestep.metrics.frechet import FrechetDistance
from onestep.metrics.statistics import FeatureStatistics, Moments
from onestep.processes import gather_rows, process_rows
from tests.helpers.paths import REFERENCE


def recorded_features(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    real, generated = (torch.from_numpy(np.load(folder / f"fid_random64_{name}.npy")) for name in ("real", "generated"))
    return real, generated


def test_equals_the_original_code() -> None:
    """8.6304786 is the result of EDM's fid.py for these random features."""
    real, generated = recorded_features(REFERENCE)
    assert FrechetDistance()(real, generated) == pytest.approx(8.630478593676743, rel=1e-9)
    assert FrechetDistance()(generated, real) == pytest.approx(8.630478593676782, rel=1e-9)


def test_statistics_are_the_original_code_s(tmp_path: Path) -> None:
    real, generated = recorded_features(REFERENCE)
    for features, name in ((real, "fid-refs"), (generated, "gen_stats")):
        ours, theirs = Moments.of(features), Moments.load(REFERENCE / f"fid_random64_{name}.npz")
        torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(ours.covariance, theirs.covariance, rtol=1e-9, atol=1e-13)
        ours.save(tmp_path / f"{name}.npz")
        with np.load(tmp_path / f"{name}.npz") as file:
            assert np.array_equal(file["mu"], ours.mean) and np.array_equal(file["sigma"], ours.covariance)
    reference = Moments.load(REFERENCE / "fid_random64_fid-refs.npz")
    assert FrechetDistance()(reference, generated) == pytest.approx(8.630478593676743, rel=1e-9)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def by_scipy(real: np.ndarray, generated: np.ndarray) -> float:
    cov_real, cov_generated = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    mean_term = np.square(real.mean(0) - generated.mean(0)).sum()
    return float(mean_term + np.trace(cov_real + cov_generated - 2 * sqrtm(cov_real @ cov_generated).real))


def by_torchmetrics(real: torch.Tensor, generated: torch.Tensor) -> float:
    identity = nn.Identity()
    identity.num_features = real.shape[1]  # type: ignore[assignment]
    distance = FrechetInceptionDistance(feature=identity, input_img_size=(real.shape[1],))
    distance.set_dtype(torch.float64)
    distance.update(real.double(), real=True)
    distance.update(generated.double(), real=False)
    return float(distance.compute())


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_equals_scipy_and_torchmetrics_on_correlated_features(offset: float) -> None:
    random = np.random.default_rng(0)
    real, generated = (random.normal(size=(n, 12)) @ random.normal(size=(12, 12)) + offset for n in (300, 200))
    expected = by_scipy(real, generated)
    assert expected > 1
    ours = FrechetDistance()(torch.from_numpy(real), torch.from_numpy(generated))
    assert ours == pytest.approx(expected, rel=1e-8)
    assert ours == pytest.approx(by_torchmetrics(torch.from_numpy(real), torch.from_numpy(generated)), rel=1e-8)


@pytest.mark.slow
def test_equals_scipy_on_2048_dimensions() -> None:
    random = np.random.default_rng(0)
    mixing = random.normal(size=(2, 2048, 2048)) / 45
    real, generated = (random.normal(size=(3000, 2048)) @ mix + 0.3 for mix in mixing)
    assert FrechetDistance()(torch.from_numpy(real), torch.from_numpy(generated)) == pytest.approx(
        by_scipy(real, generated), rel=1e-4
    )


def test_known_distances() -> None:
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.arange(8, dtype=torch.float64) / 10
    assert FrechetDistance()(features, features) == pytest.approx(0, abs=1e-9)
    assert FrechetDistance()(features, features + shift) == pytest.approx(1.4, rel=1e-9)
    # Twice the standard deviation: tr(C + 4 C - 2 * 2 C) = tr(C).
    centred = features - features.mean(0)
    assert FrechetDistance()(centred, 2 * centred) == pytest.approx(float(torch.cov(features.T).trace()), rel=1e-9)


def test_few_samples_of_many_dimensions() -> None:
    """Rank 39 in 300 dimensions: 0 for the same set, else the exact value by the samples' Gram matrices."""
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, 300, generator=random, dtype=torch.float64) for _ in range(2))
    assert FrechetDistance()(x, x) == pytest.approx(0, abs=1e-10)
    a, b = ((side - side.mean(0)) / 39**0.5 for side in (x, y))
    root_trace = torch.linalg.svdvals(a @ b.T).sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * root_trace
    assert FrechetDistance()(x, y) == pytest.approx(float(expected), rel=1e-11)


@pytest.mark.parametrize("batch", [1, 7, 64, 600])
def test_batches_and_their_order_do_not_matter(batch: int) -> None:
    real, _ = recorded_features(REFERENCE)
    expected = Moments.of(real)
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(batch))
    statistics = FeatureStatistics(64)
    for part in real[order].split(batch):
        statistics.update(part)
    found = statistics.moments()
    assert found.count == 600
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-9, atol=1e-12)


def accumulate_part(rank: int, processes: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=processes)
    real, generated = recorded_features(REFERENCE)
    generated = generated[:499]  # parts of different lengths
    statistics = FeatureStatistics(64)
    for part in real[process_rows(600)].split(50):
        statistics.update(part)
    moments = statistics.reduce().moments()
    rows = gather_rows(generated[process_rows(499)], "cpu")
    torch.save((rows, moments.mean, moments.covariance, moments.count), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_what_one_has(tmp_path: Path) -> None:
    mp.start_processes(accumulate_part, (2, str(tmp_path)), nprocs=2, start_method="fork")  # type: ignore[attr-defined]
    real, generated = recorded_features(REFERENCE)
    expected = Moments.of(real)
    for rank in (0, 1):
        rows, mean, covariance, count = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert count == 600 and torch.equal(rows, generated[:499])
        torch.testing.assert_close(mean, expected.mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(covariance, expected.covariance, rtol=1e-9, atol=1e-12)


def test_what_is_no_statistics(tmp_path: Path) -> None:
    file = tmp_path / "reference.npz"
    for arrays, message in (
        ({"mu": np.zeros(2)}, r"expected floating-point mu and sigma, got mu of float64 \[2\]"),
        ({"mu": np.zeros(2, int), "sigma": np.eye(2)}, r"expected floating-point mu and sigma, got mu of int64 \[2\]"),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, r"got mu of float64 \[2\], sigma of float64 \[3, 3\]"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0, 1]])}, "sigma is not symmetric"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2], [2, 1]])}, "sigma has negative eigenvalues"),
        ({"mu": np.zeros(2), "sigma": np.eye(2) * 1j}, "sigma.npy holds complex128, expected numbers"),
        ({"x": np.zeros(2)}, "its arrays are x, expected mu or sigma"),
        ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "is not finite"),
        ({"mu": np.array([{}], dtype=object), "sigma": np.eye(1)}, "mu.npy holds object, expected numbers"),
    ):
        np.savez(file, **arrays)
        with pytest.raises(ValueError, match=message):
            Moments.load(file)
    with pytest.raises(ValueError, match=r"none\.npz: no such file"):
        Moments.load(tmp_path / "none.npz")
    np.savez(file, mu=np.zeros(2), sigma=np.array([[1.0, 1], [1, 1]]))  # singular, as of few images
    assert torch.equal(Moments.load(file).covariance, torch.ones(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        Moments.of(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="some features are not finite"):
        Moments.of(torch.tensor([[1.0], [torch.nan]]))

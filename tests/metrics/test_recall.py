"""Precision, recall, density and coverage against their definitions by pairwise distances."""

import numpy as np
import pytest
import torch

from onestep.metrics.recall import PRDC, Recall


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([[np.sqrt(np.square(a - b).sum()) for b in y] for a in x])


def by_definition(real: np.ndarray, generated: np.ndarray, k: int, k_density: int) -> dict[str, float]:
    between = distances(real, generated)
    real_radii, generated_radii = (np.sort(distances(side, side), axis=1) for side in (real, generated))
    dense = between <= real_radii[:, k_density, None]
    return {
        "precision": float((between <= real_radii[:, k, None]).any(axis=0).mean()),
        "recall": float((between <= generated_radii[None, :, k]).any(axis=1).mean()),
        "density": float(dense.sum() / (k_density * len(generated))),
        "coverage": float(dense.any(axis=1).mean()),
    }


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_the_definition(k: int, offset: float) -> None:
    """Also far from the origin, where distances from squared norms cancel."""
    random = np.random.default_rng(k)
    real = (random.normal(size=(150, 4)) + offset).astype(np.float32)
    generated = (0.7 * random.normal(size=(120, 4)) + offset + 1).astype(np.float32)
    expected = by_definition(real.astype(np.float64), generated.astype(np.float64), k, 5)
    assert 0.05 < expected["recall"] < 0.95 and 0.05 < expected["precision"] < 1 and 0.1 < expected["coverage"] < 1
    sides = torch.from_numpy(real), torch.from_numpy(generated)
    found = PRDC(k, k_density=5)(*sides)
    assert found == pytest.approx(expected, rel=1e-14)
    assert (found["precision"], found["recall"]) == (expected["precision"], expected["recall"])
    assert Recall(k)(*sides) == expected["recall"]


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_ties_and_copies(scale: float) -> None:
    """Points of a grid with repetitions: many distances equal a radius, and some radii are 0."""
    random = np.random.default_rng(0)
    real, generated = (scale * random.integers(0, 4, size=(n, 3)).astype(np.float64) + 7 * scale for n in (90, 70))
    generated[:20] = generated[0]
    expected = by_definition(real, generated, 3, 2)
    found = PRDC(3, 2)(torch.from_numpy(real), torch.from_numpy(generated))
    assert (found["precision"], found["recall"]) == (expected["precision"], expected["recall"])
    assert found == pytest.approx(expected, rel=1e-14)


def test_a_collapsed_generator_recalls_only_its_own_point() -> None:
    """Fifty copies of one float32 sample have radius 0, and contain only the real sample at the same point."""
    real = torch.randn(60, 100, generator=torch.Generator().manual_seed(0))
    assert Recall(3)(real, real[7].expand(50, 100)) == pytest.approx(1 / 60)


def test_many_dimensions() -> None:
    random = np.random.default_rng(0)
    real, generated = (random.normal(size=(80, 512)).astype(np.float32) for _ in range(2))
    expected = by_definition(real.astype(np.float64), generated.astype(np.float64), 3, 5)
    found = PRDC(3, 5)(torch.from_numpy(real), torch.from_numpy(generated))
    assert (found["precision"], found["recall"]) == (expected["precision"], expected["recall"])


def test_known_cases() -> None:
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert Recall(1)(features, features) == 1
    assert Recall(1)(features, features + 1000) == 0
    same = PRDC(3, 5)(features, features)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    line = torch.arange(5.0)[:, None]
    # A single mode: radius 0.2 around 0, 0.1 around 0.1, 0.2 and 0.1 reach no other real sample than 0.
    assert Recall(1)(line, torch.tensor([[0.0], [0.1], [0.2]])) == pytest.approx(0.2)


def test_chunks_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,500 samples on a line, and a real sample next to the last one."""
    generated = torch.arange(2500.0, dtype=torch.float64)[:, None]
    real = torch.tensor([[2499.5], [1500.5], [0.5], [-1.5]], dtype=torch.float64)
    assert Recall(1)(real, generated) == 0.75
    coverage = PRDC(1, 1)(real, generated)["coverage"]
    monkeypatch.setattr("onestep.metrics.neighbours._ELEMENTS", 2500 * 7)
    monkeypatch.setattr("onestep.metrics.neighbours._PAIRS", 11)
    assert Recall(1)(real, generated) == 0.75
    monkeypatch.setattr("onestep.metrics.neighbours._ELEMENTS", 4 * 7)
    assert PRDC(1, 1)(real, generated)["coverage"] == coverage == 1


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="recall with k=3 needs more than 3 generated samples, got 3"):
        Recall(3)(torch.zeros(5, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="precision with k=5 needs more than 5 real samples, got 5"):
        PRDC(3, 5)(torch.zeros(5, 2), torch.zeros(30, 2))

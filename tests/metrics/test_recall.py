"""Recall against its definition, pair by pair."""

import numpy as np
import pytest
import torch

from onestep.metrics.recall import Recall


def by_definition(real: np.ndarray, generated: np.ndarray, k: int) -> float:
    radii = [np.sort(np.linalg.norm(generated - g, axis=1))[k] for g in generated]
    covered = [any(np.linalg.norm(r - g) <= radius for g, radius in zip(generated, radii, strict=True)) for r in real]
    return float(np.mean(covered))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_the_definition(k: int, offset: float) -> None:
    """Far from the origin too, where distances from squared norms lose their digits."""
    random = np.random.default_rng(k)
    real = (random.normal(size=(150, 4)) + offset).astype(np.float32)
    generated = (0.5 * random.normal(size=(120, 4)) + offset).astype(np.float32)
    expected = by_definition(real.astype(np.float64), generated.astype(np.float64), k)
    assert 0.05 < expected < 0.95
    assert Recall(k)(torch.from_numpy(real), torch.from_numpy(generated)) == expected


def test_known_cases() -> None:
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert Recall(1)(features, features) == 1
    assert Recall(1)(features, features + 1000) == 0
    line = torch.arange(5.0)[:, None]
    # A single mode: radius 0.2 around 0, 0.1 around 0.1, 0.2 and 0.1 reach no other real sample than 0.
    assert Recall(1)(line, torch.tensor([[0.0], [0.1], [0.2]])) == pytest.approx(0.2)


def test_chunks_of_generated_samples_are_put_together() -> None:
    """2,500 samples on a line, a real one beside the last of them."""
    generated = torch.arange(2500.0, dtype=torch.float64)[:, None]
    assert Recall(1)(torch.tensor([[2499.5], [1500.5], [0.5], [-1.5]], dtype=torch.float64), generated) == 0.75


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="k >= 1 neighbours, got k=0"):
        Recall(0)
    with pytest.raises(ValueError, match="recall with k=3 needs more than 3 generated samples, got 3"):
        Recall(3)(torch.zeros(5, 2), torch.zeros(3, 2))

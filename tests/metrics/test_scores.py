"""The Inception Score and the kernel distance against values computed by hand."""

import math

import numpy as np
import pytest
import torch

from onestep.metrics.inception_score import InceptionScore
from onestep.metrics.kid import KernelDistance


def test_inception_score_by_hand() -> None:
    """Certain, equally frequent classes: 4 for four. Uniform logits: 1."""
    certain = 1000 * torch.eye(4).repeat_interleave(25, 0)
    assert InceptionScore(1)(None, certain) == pytest.approx(4)
    assert InceptionScore(10)(None, torch.zeros(100, 4)) == pytest.approx(1)
    # Two samples, p = (0.9, 0.1) and (0.5, 0.5), whose mean is (0.7, 0.3).
    p = np.array([[0.9, 0.1], [0.5, 0.5]])
    expected = math.exp(np.mean((p * np.log(p / [0.7, 0.3])).sum(1)))
    assert InceptionScore(1)(None, torch.from_numpy(p).log() + 5) == pytest.approx(expected, rel=1e-12)


def test_inception_score_does_not_depend_on_the_order_of_the_samples() -> None:
    """Ten parts of samples that are sorted by class would each have one class, and the score 1."""
    rng = torch.Generator().manual_seed(1)
    by_class = 20 * torch.eye(10).repeat_interleave(40, 0) + torch.randn(400, 10, generator=rng)
    values = [
        InceptionScore(10)(None, by_class[order]) for order in (torch.arange(400), *(torch.randperm(400) for _ in "ab"))
    ]
    assert 8 < values[0] < 10
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-12)


def test_kernel_distance_is_its_sum_over_pairs() -> None:
    random = np.random.default_rng(0)
    real, generated = random.normal(size=(40, 6)), random.normal(0.3, size=(40, 6))

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 6 + 1) ** 3)

    apart = [(i, j) for i in range(40) for j in range(40) if i != j]
    within = sum(kernel(side[i], side[j]) for side in (real, generated) for i, j in apart) / len(apart)
    expected = within - 2 * sum(kernel(x, y) for x in real for y in generated) / 40**2
    assert expected > 0.01
    # A subset of the full size is the set in another order.
    for size in (40, 1000):
        distance = KernelDistance(3, size, seed=0)(torch.from_numpy(real), torch.from_numpy(generated))
        assert distance == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_by_hand() -> None:
    """On the line, {0, 1} against {2, 3}: k(0, 1) + k(2, 3) - 2 * mean(1, 1, 27, 64) with k = (xy + 1)^3."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    assert KernelDistance(1, 2, seed=0)(x, y) == pytest.approx(1 + 343 - 2 * (1 + 1 + 27 + 64) / 4)


def test_kernel_distance_is_unbiased_and_repeats() -> None:
    random = torch.Generator().manual_seed(0)
    real, generated = (torch.randn(2000, 8, generator=random) for _ in range(2))
    metric = KernelDistance(50, 200, seed=0)
    assert metric(real, generated) == metric(real, generated) != KernelDistance(50, 200, seed=1)(real, generated)
    assert abs(metric(real, generated)) < 0.01 < metric(real, generated + 0.3)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="kid needs at least 2 real and 2 generated samples, got 1 and 5"):
        KernelDistance(10, 10, seed=0)(torch.zeros(1, 2), torch.zeros(5, 2))

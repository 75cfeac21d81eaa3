"""Metrics of points, each against a count or an integral by hand."""

import math

import pytest
import torch

from onestep.toy.gaussian_mixture import GaussianMixture
from onestep.toy.metrics import BinnedKL, EnergyDistance, ModePrecision, ModesCovered

GRID = GaussianMixture.grid(side=3, spacing=1.0, std=0.1)
NONE = torch.empty(0, 2)


def test_modes_and_precision_of_counted_points() -> None:
    """90 points, 10 expected in each of 9 modes: 40 at one mean, 2 at another (the smallest number that counts), 1 at a
    third, the rest 3.1 standard deviations from a fourth."""
    places = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 1.0], [1.31, 0.0]])
    points = places.repeat_interleave(torch.tensor([40, 2, 1, 47]), 0)
    assert ModesCovered(GRID, share=0.2)(NONE, points) == 2
    assert ModesCovered(GRID, share=0.1)(NONE, points) == 3
    assert ModePrecision(GRID)(NONE, points) == pytest.approx(43 / 90)


def test_modes_of_unequal_weight() -> None:
    """Of 100 points 80 and 20 are expected, and half of these are enough."""
    mixture = GaussianMixture.modes([0.8, 0.2], [[0.0, 0.0], [5.0, 0.0]], [0.1, 0.1])
    for counts, covered in (((85, 15), 2), ((91, 9), 1), ((39, 61), 1)):
        points = mixture.means.repeat_interleave(torch.tensor(counts), 0)
        assert ModesCovered(mixture, share=0.5)(NONE, points) == covered


def test_precision_of_the_mixture_itself() -> None:
    """The mass 1 - exp(-9/2) = 0.9889 of a planar Gaussian lies within three standard deviations."""
    points = GRID.sample(100_000, torch.Generator().manual_seed(0))
    assert ModePrecision(GRID)(NONE, points) == pytest.approx(1 - math.exp(-4.5), abs=1.5e-3)
    assert ModesCovered(GRID, share=0.9)(NONE, points) == 9


def test_kl_of_points_in_known_cells() -> None:
    """Four cells and the outside: half of the points in one quadrant of a centred Gaussian, half outside the cells."""
    gaussian = GaussianMixture.grid(side=1, spacing=1.0, std=1.0)
    inside = math.erf(1 / math.sqrt(2)) ** 2  # of both coordinates in [-1, 1]
    points = torch.tensor([[0.5, -0.5], [3.0, 0.0]])
    expected = 0.5 * math.log(0.5 / (inside / 4)) + 0.5 * math.log(0.5 / (1 - inside))
    assert BinnedKL(gaussian, extent=1.0, cells=2)(NONE, points) == pytest.approx(expected, rel=1e-6)


def test_kl_of_points_in_the_cell_that_has_all_mass() -> None:
    """Not in that of the exchanged coordinates."""
    mixture = GaussianMixture.modes([1.0], [[0.5, -0.5]], [0.1])
    assert BinnedKL(mixture, extent=1.0, cells=2)(NONE, mixture.means) == pytest.approx(0, abs=1e-5)


def test_kl_of_the_mixture_itself_is_its_floor() -> None:
    points = GRID.sample(200_000, torch.Generator().manual_seed(0))
    kl = BinnedKL(GRID, extent=1.6, cells=16)(NONE, points)
    assert 0 < kl < 256 / (2 * 200_000) * 1.2


def test_energy_distance_by_hand() -> None:
    """One dimension, {0, 1} against {2, 4}: 2 * 2.5 - 1 - 2 = 2."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [4.0]])
    assert EnergyDistance(count=10)(x, y) == pytest.approx(2.0)
    assert EnergyDistance(count=2)(torch.cat([x, y]), torch.cat([y, x])) == pytest.approx(2.0)


def test_cells_are_planar() -> None:
    with pytest.raises(ValueError, match=r"metrics\.kl .* got 1"):
        BinnedKL(GaussianMixture.modes([1.0], [[0.0]], [1.0]), 1.0, 10)

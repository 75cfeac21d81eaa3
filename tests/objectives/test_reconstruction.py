"""Terms against the ground truth of a condition."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from onestep.haar import haar
from onestep.objectives.haar import HaarDetails
from onestep.objectives.reconstruction import Reconstruction


def images(seed: int) -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("distance", "of_offset"), [("l1", 0.25), ("l2", 0.0625), ("charbonnier", math.hypot(0.25, 0.5))]
)
def test_the_distance_of_an_offset(distance: Any, of_offset: float) -> None:
    """A mean over dimensions, so that it does not depend on the images' size."""
    x = images(0)
    losses = Reconstruction(distance, 1.0, 0.5)(x + torch.tensor([0.25, -0.25])[:, None, None, None], x)
    torch.testing.assert_close(losses, torch.full((2,), of_offset, dtype=torch.float64))
    # The details of a constant are 0, where the smooth distance is epsilon.
    details = HaarDetails(distance, 1.0, 2, 0.5)(x + 0.25, x)
    assert details.tolist() == pytest.approx([0.5 if distance == "charbonnier" else 0.0] * 2, abs=1e-12)


def test_the_haar_transform_is_orthonormal_and_separates_directions() -> None:
    x = images(1)
    low, details = haar(x, 2)
    assert low.shape == (2, 3, 2, 2) and [band.shape for band in details] == [(2, 9, 4, 4), (2, 9, 2, 2)]
    energy = low.square().sum() + sum(band.square().sum() for band in details)
    assert float(energy) == pytest.approx(float(x.square().sum()), rel=1e-12)
    torch.testing.assert_close(low, 4 * torch.nn.functional.avg_pool2d(x, 4))
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    for band, pattern in enumerate([columns % 2, rows % 2, (rows + columns) % 2]):
        _, (found,) = haar(1 - 2 * pattern[None, None].double(), 1)
        assert found[0].abs().amax((1, 2)).tolist() == [2.0 if number == band else 0.0 for number in range(3)]


def test_details_are_an_l2_distance_by_frequency() -> None:
    """Together with that of the low band it is the squared distance of the images."""
    x, y = images(2), images(3)
    (low_x, _), (low_y, _) = haar(x, 2), haar(y, 2)
    details = HaarDetails("l2", 1.0, 2, 1e-3)(x, y) * (1 - 1 / 16)
    low = (low_x - low_y).square().mean((1, 2, 3)) / 16
    torch.testing.assert_close(details + low, Reconstruction("l2", 1.0, 1e-3)(x, y))


def test_what_terms_refuse() -> None:
    with pytest.raises(ValueError, match=r"samples of the same shape, got \(2, 3, 8, 8\) and \(2, 3, 1, 8\)"):
        Reconstruction("l1", 1.0, 1e-3)(images(0), images(0)[:, :, :1])
    HaarDetails("l1", 1.0, 3, 1e-3).check((3, 8, 16))
    with pytest.raises(ValueError, match="terms.haar.levels=3: samples of 8x12 cannot be halved so often: set fewer"):
        HaarDetails("l1", 1.0, 3, 1e-3).check((3, 8, 12))

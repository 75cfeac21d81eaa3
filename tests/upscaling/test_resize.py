"""Bicubic resizing by windows, against torch's of whole pictures."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from onestep.images import from_uint8, reflect, to_uint8
from onestep.upscaling.resize import Resized, resize, to_data, to_levels
from tests.helpers.upscaling import pixels


@pytest.mark.parametrize("height, width", [(148, 92), (93, 58), (15, 9), (48, 30), (37, 23), (1, 1)])
def test_resizing_is_torchs(height: int, width: int) -> None:
    levels = pixels(37, 23)
    own = Resized(levels, height, width).window(range(height), range(width))
    expected = F.interpolate(to_data(levels)[None], (height, width), mode="bicubic", antialias=True)[0].clamp(-1, 1)
    assert (own - expected).abs().max() < 1e-5


def test_a_window_has_the_pixels_of_the_whole() -> None:
    """To the last bit, also beyond the picture, which is reflected as often as needed."""
    resized = Resized(pixels(5, 7), 20, 28)
    whole = resized.window(range(20), range(28))
    assert torch.equal(resized.window(range(3, 12), range(20, 27)), whole[:, 3:12, 20:27])
    outside = resized.window(range(-50, 70), range(-3, 40))
    assert torch.equal(outside, whole[:, reflect(range(-50, 70), 20)][:, :, reflect(range(-3, 40), 28)])
    assert reflect(range(-4, 7), 3).tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]
    assert reflect([-2, 0, 5], 1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_levels_survive(dtype: type) -> None:
    levels: np.ndarray = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(16, -1, 1)
    assert (to_levels(to_data(levels), levels.dtype) == levels).all()
    assert (resize(levels, levels.shape[0], levels.shape[1], levels.dtype) == levels).all()


def test_levels_are_those_of_samples() -> None:
    levels, images = pixels(8, 8), torch.linspace(-1.2, 1.2, 192).reshape(3, 8, 8)
    assert (to_levels(images, np.dtype(np.uint8)) == to_uint8(images).permute(1, 2, 0).numpy()).all()
    assert torch.equal(to_data(levels), from_uint8(torch.from_numpy(levels)).permute(2, 0, 1))

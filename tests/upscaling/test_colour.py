"""Corrections of colours, against formulas for whole pictures."""

import numpy as np
import torch

from onestep.upscaling.colour import fix_colour, low_pass
from onestep.upscaling.resize import Resized, resize
from tests.helpers.upscaling import pixels


def a_pair() -> tuple[np.ndarray, Resized, np.ndarray]:
    """An upscaled picture of wrong colours, and the bicubic one, also as levels of 16 bits."""
    levels = pixels(50, 40)
    bicubic = Resized(levels, 150, 120)
    deep = resize(levels, 150, 120, np.dtype(np.uint16))
    noise = np.random.default_rng(1).normal(size=deep.shape)
    wrong = (0.5 * deep.astype(float) + 1500 * noise + np.array([9000, 15000, 12000])).clip(0, 65535).astype(np.uint16)
    return wrong, bicubic, deep


def test_adain_gives_the_moments() -> None:
    wrong, bicubic, deep = a_pair()
    fixed = fix_colour(wrong, bicubic, "adain").astype(float)
    assert np.abs(fixed.mean((0, 1)) - deep.mean((0, 1))).max() < 100
    assert np.abs(fixed.std((0, 1)) / deep.std((0, 1)) - 1).max() < 0.01


def test_adain_of_an_even_picture() -> None:
    even = np.full((8, 8, 1), 30, np.uint8)
    fixed = fix_colour(even, Resized(np.full((4, 4, 1), 90, np.uint8), 8, 8), "adain")
    assert (fixed == 90).all()


def test_the_wavelet_band_is_replaced() -> None:
    wrong, bicubic, deep = a_pair()
    fixed = fix_colour(wrong, bicubic, "wavelet").astype(float)
    inner = (slice(31, -31), slice(31, -31))

    def low(picture: np.ndarray) -> np.ndarray:
        return low_pass(torch.from_numpy(picture.astype(float)).permute(2, 0, 1)).permute(1, 2, 0).numpy()

    expected = (wrong[inner] - low(wrong) + low(deep)).clip(0, 65535)
    assert np.abs(fixed[inner] - expected).max() < 2
    assert np.abs(fixed.mean((0, 1)) - deep.mean((0, 1))).max() < 700 < np.abs(wrong - deep.astype(float)).mean()


def test_the_taps_of_the_lowest_band() -> None:
    point = torch.zeros(1, 125, 125, dtype=torch.float64)
    point[0, 62, 62] = 1
    line = np.array([1.0])
    for far in (1, 2, 4, 8, 16):
        taps = np.zeros(2 * far + 1)
        taps[[0, far, 2 * far]] = 0.25, 0.5, 0.25
        line = np.convolve(line, taps)
    assert np.allclose(low_pass(point)[0].numpy(), np.outer(line, line), atol=1e-15)

"""The colours of the bicubic picture for an upscaled one, by strips: AdaIN's moments, or the lowest wavelet band.

Both are those of StableSR (arXiv 2305.07015, sec. 3.3).
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from onestep.upscaling.resize import Resized, by_strips, strips

ColourFix = Literal["none", "adain", "wavelet"]
_DISTANCES = (1, 2, 4, 8, 16)  # between the taps of each wavelet level
_REACH = sum(_DISTANCES)


def fix_colour(picture: np.ndarray, bicubic: Resized, fix: Literal["adain", "wavelet"]) -> np.ndarray:
    """The ``picture`` [H, W, C] of levels with the colours of the ``bicubic`` one of its size.

    Args:
        picture: levels of 8 or 16 bits, as those of the result.
        bicubic: the input's picture at the same size.
        fix: "adain" gives each channel the mean and the standard deviation of the bicubic one, over the whole picture;
            "wavelet" replaces the lowest band.
    """
    own = Resized(picture, *picture.shape[:2])
    fixed = (_with_moments if fix == "adain" else _with_low_band)(own, bicubic)
    return by_strips(picture.shape, picture.dtype, fixed)


def low_pass(images: Tensor) -> Tensor:
    """The lowest band of five levels of the undecimated wavelet transform with the taps 1/4, 1/2, 1/4.

    Args:
        images: [C, H, W]; the result is 31 pixels smaller on each side.
    """
    for far in _DISTANCES:
        images = (images[:, : -2 * far] + 2 * images[:, far:-far] + images[:, 2 * far :]) / 4
        images = (images[:, :, : -2 * far] + 2 * images[:, :, far:-far] + images[:, :, 2 * far :]) / 4
    return images


def _with_moments(own: Resized, bicubic: Resized) -> Callable[[range], Tensor]:
    (mean, deviation), (new_mean, new_deviation) = _moments(own), _moments(bicubic)
    # A channel without variation stays without.
    scale = torch.where(deviation > 0, new_deviation / deviation.clamp(min=1e-12), 1.0)
    return lambda rows: (own.window(rows, range(own.width)) - mean) * scale + new_mean


def _with_low_band(own: Resized, bicubic: Resized) -> Callable[[range], Tensor]:
    columns = range(-_REACH, own.width + _REACH)

    def fixed(rows: range) -> Tensor:
        wider = range(rows.start - _REACH, rows.stop + _REACH)
        difference = bicubic.window(wider, columns) - own.window(wider, columns)
        return own.window(rows, range(own.width)) + low_pass(difference)

    return fixed


def _moments(picture: Resized) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C, 1, 1] of each channel, in float64."""
    count, mean, squares = 0, torch.zeros(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    for rows in strips(picture.height):
        strip = picture.window(rows, range(picture.width)).double()
        # Chan's update: a sum of squares alone would lose the variance of a nearly even picture.
        number = strip.shape[1] * strip.shape[2]
        own = strip.mean((1, 2), keepdim=True)
        squares = squares + ((strip - own) ** 2).sum((1, 2), keepdim=True)
        squares = squares + (own - mean) ** 2 * count * number / (count + number)
        mean = mean + (own - mean) * number / (count + number)
        count += number
    return mean, (squares / count).sqrt()

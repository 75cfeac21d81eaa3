"""The steps of random degradation models, on the grey levels of one image: blur, resizing, noise and JPEG."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import AfterValidator
from torch import Tensor

from onestep.data import kernels
from onestep.data.jpeg import LUMA, jpeg, rounded
from onestep.images import reflect
from onestep.ranges import NonNegative, Positive

_ENDS = ", the first at most the second"


def _ordered(ends: list[Any]) -> list[Any]:
    if ends[0] > ends[1]:
        raise ValueError("the second end is below the first")
    return ends


def _odd(ends: list[int]) -> list[int]:
    if not all(end % 2 for end in ends):
        raise ValueError("a kernel has a middle")
    return _ordered(ends)


def _adding_up(weights: list[float]) -> list[float]:
    if sum(weights) <= 0:
        raise ValueError("nothing can be drawn")
    return weights


_LENGTH = (MinLen(2), MaxLen(2))
#: Two numbers.
Two = Annotated[list[NonNegative], *_LENGTH]
#: The least and the greatest of what is drawn uniformly: numbers, and the quality of JPEG.
Interval = Annotated[list[Positive], *_LENGTH, AfterValidator(_ordered), lambda value: _ENDS]
Qualities = Annotated[list[Annotated[int, Ge(1), Le(100)]], *_LENGTH, AfterValidator(_ordered), lambda value: _ENDS]
#: The least and the greatest side of a kernel in pixels.
Sizes = Annotated[
    list[Annotated[int, Ge(1), Le(63)]], *_LENGTH, AfterValidator(_odd), lambda value: f"{_ENDS}, and both odd"
]
#: Relative frequencies of a fixed number of choices.
Three = Annotated[list[NonNegative], MinLen(3), MaxLen(3), AfterValidator(_adding_up), lambda value: ", not all 0"]
Six = Annotated[list[NonNegative], MinLen(6), MaxLen(6), AfterValidator(_adding_up), lambda value: ", not all 0"]

_MODES = ("area", "bilinear", "bicubic")


class Draws:
    """Uniform random numbers and choices of ``rng``."""

    def __init__(self, rng: torch.Generator) -> None:
        self.rng = rng

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self.rng, dtype=torch.float64))

    def happens(self, probability: float) -> bool:
        """True with this ``probability``."""
        return self.uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.rng))

    def odd(self, ends: Sequence[int]) -> int:
        """An odd number from the first to the second of ``ends``, both odd and included."""
        return 2 * self.integer(ends[0] // 2, ends[1] // 2) + 1

    def choice(self, weights: Sequence[float]) -> int:
        """A place in ``weights``, as frequent as its weight."""
        return int(torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=self.rng))

    def order(self, count: int) -> list[int]:
        """A random order of ``count`` things."""
        return torch.randperm(count, generator=self.rng).tolist()

    def normal(self, *shape: int) -> Tensor:
        """Numbers ~ N(0, 1)."""
        return torch.randn(shape, generator=self.rng, dtype=torch.float64)


def blurred(levels: Tensor, kernel: Tensor) -> Tensor:
    """``levels`` [1, C, H, W] filtered by an odd ``kernel`` [k, k]; they are reflected at their border."""
    padded = levels
    for axis in (2, 3):
        places = range(-(len(kernel) // 2), levels.shape[axis] + len(kernel) // 2)
        padded = padded.index_select(axis, torch.from_numpy(reflect(places, levels.shape[axis])))
    # By the Fourier transform, which is far faster than a direct sum in float64; the border takes up what wraps around.
    size = padded.shape[2:]
    product = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel, size).conj()
    return torch.fft.irfft2(product, size)[..., : levels.shape[2], : levels.shape[3]]


def sinc_kernel(draws: Draws, sizes: Sequence[int], least: float | None = None) -> Tensor:
    """A sinc filter of one of the ``sizes``, with a cutoff from ``least`` to pi.

    None is the published least cutoff: pi/3 for kernels below 13 pixels, and pi/5.
    """
    size = draws.odd(sizes)
    low = (math.pi / 3 if size < 13 else math.pi / 5) if least is None else least
    return kernels.sinc(size, draws.uniform(low, math.pi))


def resized(levels: Tensor, size: Sequence[int], draws: Draws) -> Tensor:
    """``levels`` [1, C, H, W] at the ``size`` (h, w), without antialiasing: by area, bilinear or bicubic at random."""
    mode = _MODES[draws.integer(0, 2)]
    height, width = (max(1, side) for side in size)
    return F.interpolate(levels, (height, width), mode=mode).clamp(0, 255)


def gaussian_noise(levels: Tensor, deviation: float, grey: bool, draws: Draws) -> Tensor:
    """Noise of a standard ``deviation`` in grey levels for ``levels`` [1, C, H, W]; ``grey``: equal in all channels."""
    _, channels, height, width = levels.shape
    return draws.normal(1, 1 if grey else channels, height, width).expand_as(levels) * deviation


def poisson_noise(levels: Tensor, grey: bool, draws: Draws) -> Tensor:
    """Shot noise for ``levels`` [1, C, H, W] at as many photons as they have different values, a power of 2.

    With ``grey`` it is that of the luminance, in all channels.
    """
    light = (levels * LUMA.reshape(3, 1, 1)).sum(1, keepdim=True) if grey and levels.shape[1] == 3 else levels
    light = rounded(light.clamp(0, 255)) / 255
    peak = 2 ** math.ceil(math.log2(len(light.unique())))
    return ((torch.poisson(light * peak, generator=draws.rng) / peak - light) * 255).expand_as(levels)


def compressed(levels: Tensor, qualities: Sequence[int], draws: Draws) -> Tensor:
    """``levels`` [1, C, H, W] after JPEG of a quality from the first to the second of ``qualities``."""
    return jpeg(rounded(levels.clamp(0, 255)), draws.integer(*qualities))

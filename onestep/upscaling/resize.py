"""Bicubic resizing of which any window can be computed alone, with the same pixels as in the whole picture."""

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from onestep.images import reflect

_STRIP = 64  # rows of a picture that are computed at a time


def to_levels(images: Tensor, dtype: np.dtype) -> np.ndarray:
    """Images [C, H, W] in [-1, 1] as levels [H, W, C] of 8 or 16 bits, rounded as in :func:`onestep.images.to_uint8`.

    Args:
        images: in data units; what is outside [-1, 1] is clipped.
        dtype: uint8 or uint16.
    """
    half = np.iinfo(dtype).max / 2
    levels = (images.double() * half + (half + 0.5)).clamp(0, 2 * half).floor()
    return levels.permute(1, 2, 0).numpy().astype(dtype)


def to_data(levels: np.ndarray) -> Tensor:
    """Levels [H, W, C] of 8 or 16 bits as float32 images [C, H, W] in [-1, 1]."""
    half = np.iinfo(levels.dtype).max / 2
    return torch.from_numpy(np.ascontiguousarray(levels.transpose(2, 0, 1)).astype(np.float32)) / half - 1


class Resized:
    """A picture at another size by bicubic interpolation, antialiased where it is reduced, as torch's and Pillow's.

    Args:
        levels: pixels [H, W, C] of 8 or 16 bits.
        height, width: the new size; its own gives the picture itself.
    """

    def __init__(self, levels: np.ndarray, height: int, width: int) -> None:
        self.levels, self.height, self.width = levels, height, width
        self._rows = _taps(levels.shape[0], height)
        self._columns = _taps(levels.shape[1], width)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the new size."""
        return self.height, self.width, self.levels.shape[2]

    def window(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """The pixels [C, rows, columns] in [-1, 1]; outside of the picture it is continued by reflection.

        A bicubic curve may leave [-1, 1] beside edges; it is clipped.
        """
        down, down_weights = (part[reflect(rows, self.height)] for part in self._rows)
        across, across_weights = (part[reflect(columns, self.width)] for part in self._columns)
        top, left = down.min(), across.min()
        crop = to_data(self.levels[top : down.max() + 1, left : across.max() + 1])
        across -= left
        down -= top
        # Sums of few products in a fixed order: a pixel's value is the same in every window.
        wide = reduce(torch.add, (crop[:, :, at] * by for at, by in zip(across.T, across_weights.T, strict=True)))
        tall = (wide[:, at] * by[:, None] for at, by in zip(down.T, down_weights.T, strict=True))
        return reduce(torch.add, tall).clamp(-1, 1)


def resize(levels: np.ndarray, height: int, width: int, dtype: np.dtype) -> np.ndarray:
    """The picture [H, W, C] at another size, with levels of another ``dtype``, computed by strips."""
    resized = Resized(levels, height, width)
    return by_strips(resized.shape, dtype, lambda rows: resized.window(rows, range(width)))


def by_strips(shape: tuple[int, ...], dtype: np.dtype, compute: Callable[[range], Tensor]) -> np.ndarray:
    """The picture of a ``shape`` (H, W, C) whose rows ``compute`` gives, [C, rows, W] in [-1, 1], a strip at a time."""
    result = np.empty(shape, dtype)
    for rows in strips(shape[0]):
        result[rows.start : rows.stop] = to_levels(compute(rows), dtype)
    return result


def strips(height: int) -> list[range]:
    """The rows of the strips of a picture."""
    return [range(top, min(top + _STRIP, height)) for top in range(0, height, _STRIP)]


def _taps(size: int, new_size: int) -> tuple[np.ndarray, Tensor]:
    """The old pixels of each new one, and their weights: both [new_size, taps].

    The kernel is Keys's with a = -1/2, as wide as a new pixel where the size is reduced. Pixels outside of the picture
    have no weight, as in Pillow.
    """
    scale = size / new_size
    width = max(1.0, scale)
    centre = (np.arange(new_size) + 0.5) * scale
    first = np.maximum(np.floor(centre - 2 * width + 0.5).astype(np.int64), 0)
    last = np.minimum(np.floor(centre + 2 * width + 0.5).astype(np.int64), size)
    places = first[:, None] + np.arange((last - first).max())
    x = np.abs((places - centre[:, None] + 0.5) / width)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights[places >= last[:, None]] = 0.0
    weights /= weights.sum(1, keepdims=True)
    return np.minimum(places, size - 1), torch.from_numpy(weights.astype(np.float32))

"""Square tiles over a picture of any size, blended with smooth weights by strips."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

#: Rows and columns of a tile.
Window = tuple[range, range]


@dataclass(frozen=True)
class Tiling:
    """Tiles of ``size`` x ``size`` pixels, of which neighbours share at least ``overlap``.

    A pixel in the outer quarter of a tile's overlap has no weight: a network whose receptive field reaches at most this
    far, and the ``context``, gives the same picture for every tile size. At the picture's ends the tiles reach beyond
    it as far.

    Args:
        size: side of a tile.
        overlap: at most half of it.
        context: pixels that the network sees beyond a tile on each side; they are cut off before the blending.
        unit: the offsets of tiles are multiples of it, as a network that reduces its input by ``unit`` gives shifted
            outputs of shifted inputs for such offsets alone.

    Raises:
        ValueError: for sides that are no multiples of the unit, or another overlap.
    """

    size: int
    overlap: int
    unit: int = 1
    context: int = 0

    def __post_init__(self) -> None:
        for name, value in (("tile", self.size), ("overlap", self.overlap), ("context", self.context)):
            if value % self.unit:
                raise ValueError(
                    f"{name}={value}: this network halves its input down to 1/{self.unit}: expected a multiple of "
                    f"{self.unit}"
                )
        if 2 * self.overlap > self.size:
            raise ValueError(f"overlap={self.overlap}: expected at most half of the tile, {self.size // 2}")

    @property
    def margin(self) -> int:
        """The outermost pixels of a tile, which have no weight."""
        return self.overlap // 4

    def starts(self, length: int) -> list[int]:
        """The first pixels of the tiles along an axis of ``length`` pixels; the first tile's is outside of it."""
        start = -_up(self.margin, self.unit)
        last = _up(length + self.margin - self.size, self.unit)
        if last <= start:
            return [start]
        return [*range(start, last, self.size - self.overlap), last]

    def weights(self, length: int) -> Tensor:
        """The weight [tiles, size] in float64 of each tile's pixels: in [0, ``length``) those of a pixel sum to 1."""
        starts = self.starts(length)
        ramp = self.overlap - 2 * self.margin
        inwards = (torch.arange(self.size, dtype=torch.float64) - self.margin + 0.5) / max(1, ramp)
        rise = inwards.clamp(0, 1)
        rise = rise * rise * (3 - 2 * rise)
        window = rise * rise.flip(0)
        total = torch.zeros(starts[-1] + self.size - starts[0], dtype=torch.float64)
        for start in starts:
            total[start - starts[0] :][: self.size] += window
        sums = torch.stack([total[start - starts[0] :][: self.size] for start in starts])
        return torch.where(window > 0, window / sums, 0.0)

    def count(self, height: int, width: int) -> int:
        """The number of tiles of a picture."""
        return len(self.starts(height)) * len(self.starts(width))


def _up(value: int, unit: int) -> int:
    """``value``, rounded up to a multiple of ``unit``."""
    return -(-value // unit) * unit


def blend(
    predict: Callable[[Sequence[Window]], Tensor], height: int, width: int, tiling: Tiling, batch_size: int
) -> Iterator[tuple[int, Tensor]]:
    """The strips of a picture from the top to the bottom: the first row, and pixels [C, rows, width] in float64.

    Memory is that of a row of tiles. Sums are in float64, so that tiles that agree give their common value in float32.

    Args:
        predict: gives the pixels [B, C, h, w] of B windows, tiles with their context, on the CPU.
        height, width: size of the picture.
        tiling: of the picture.
        batch_size: tiles at a time.
    """
    lefts, across = tiling.starts(width), tiling.weights(width)
    tops, down = tiling.starts(height), tiling.weights(height)
    kept: Tensor | None = None
    for (top, following), of_rows in zip(pairwise((*tops, height)), down, strict=True):
        strip = _blend_row(predict, top, lefts, of_rows, across, width, tiling.context, batch_size)
        if kept is not None:
            strip[:, : kept.shape[1]] += kept
        first = max(top, 0)
        yield first, strip[:, first - top : following - top]
        kept = strip[:, following - top :]


def _blend_row(
    predict: Callable[[Sequence[Window]], Tensor],
    top: int,
    lefts: Sequence[int],
    of_rows: Tensor,
    across: Tensor,
    width: int,
    context: int,
    batch_size: int,
) -> Tensor:
    """The weighted sum [C, size, width] of a row of tiles."""
    size = len(of_rows)
    strip: Tensor | None = None
    for start in range(0, len(lefts), batch_size):
        batch = lefts[start : start + batch_size]
        seen = [range(start - context, start + size + context) for start in (top, *batch)]
        tiles = predict([(seen[0], columns) for columns in seen[1:]])
        tiles = tiles[:, :, context : context + size, context : context + size]
        if strip is None:
            strip = torch.zeros(tiles.shape[1], size, width, dtype=torch.float64)
        for left, tile, of_columns in zip(batch, tiles, across[start:], strict=False):
            first, end = max(left, 0), min(left + size, width)
            inside = slice(first - left, end - left)
            strip[:, :, first:end] += tile[:, :, inside] * of_rows[:, None] * of_columns[inside]
    assert strip is not None
    return strip

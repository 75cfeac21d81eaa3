"""Noise over an unlimited picture: that of a pixel depends on the seed and on its place alone."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from onestep.seeding import seeded_rng

_SIDE = 64  # of the blocks, each of which has an rng of its own
_ORIGIN = 1 << 20  # blocks before the first, for places outside of the picture: keys are not negative


def noise_window(seed: int, step: int, channels: int, rows: range, columns: range) -> Tensor:
    """Noise ~ N(0, I) [channels, rows, columns] of a window, on the CPU.

    Windows agree where they overlap, so that tiles have no seam from the noise.

    Args:
        seed: of the field.
        step: of the generator's steps, each of which has a field of its own.
        channels: of the picture.
        rows, columns: places in pixels, which may be negative.
    """
    blocks = [
        torch.cat([_block(seed, step, channels, down, across) for across in _blocks(columns)], 2)
        for down in _blocks(rows)
    ]
    top, left = rows.start % _SIDE, columns.start % _SIDE
    return torch.cat(blocks, 1)[:, top : top + len(rows), left : left + len(columns)]


def _blocks(places: Sequence[int]) -> range:
    return range(places[0] // _SIDE, places[-1] // _SIDE + 1)


@lru_cache(maxsize=1024)
def _block(seed: int, step: int, channels: int, down: int, across: int) -> Tensor:
    rng = seeded_rng(seed, step, channels, _ORIGIN + down, _ORIGIN + across)
    return torch.randn((channels, _SIDE, _SIDE), generator=rng)

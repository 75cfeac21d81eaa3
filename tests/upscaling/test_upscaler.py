"""Tiles, their noise and their blending: the result is that of one evaluation of the whole picture."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from onestep.upscaling.noise import noise_window
from onestep.upscaling.resize import resize
from onestep.upscaling.tiles import Tiling
from tests.helpers.upscaling import identity, local_student, make_upscaler, pixels

SHAPES = [(60, 50, 3), (1, 40, 3), (40, 1, 1), (1, 1, 1)]


@pytest.mark.parametrize("tiling", [Tiling(64, 16), Tiling(96, 16, 8), Tiling(64, 32, 4), Tiling(16, 0, 16)])
@pytest.mark.parametrize("length", [1, 15, 64, 65, 333])
def test_weights_sum_to_one(tiling: Tiling, length: int) -> None:
    starts, weights = tiling.starts(length), tiling.weights(length)
    assert all(start % tiling.unit == 0 for start in starts)
    assert all(after - before <= tiling.size - tiling.overlap for before, after in pairwise(starts))
    total = torch.zeros(length, dtype=torch.float64)
    for start, of_tile in zip(starts, weights, strict=True):
        for place in range(max(start, 0), min(start + tiling.size, length)):
            total[place] += of_tile[place - start]
    assert (total - 1).abs().max() < 1e-15
    if tiling.margin:
        assert weights[:, : tiling.margin].max() == weights[:, -tiling.margin :].max() == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((60, 16, 8), "tile=60: this network halves its input down to 1/8: expected a multiple of 8"),
        ((64, 12, 8), "overlap=12: this network"),
        ((64, 40, 8), "overlap=40: expected at most half of the tile, 32"),
        ((64, 16, 8, 12), "context=12: this network"),
    ],
)
def test_other_tiles_are_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiling(*arguments)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_identity_gives_the_bicubic_picture(shape: tuple[int, int, int]) -> None:
    levels = pixels(*shape)
    for factor in (4, 2.5):
        expected = resize(levels, max(1, int(shape[0] * factor + 0.5)), int(shape[1] * factor + 0.5), levels.dtype)
        for tiling in (Tiling(64, 16), Tiling(16, 4, 4)):
            assert (make_upscaler(identity, factor=factor, tiling=tiling)(levels) == expected).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_neither_tiles_nor_batches_are_seen(shape: tuple[int, int, int]) -> None:
    """The network reaches 4 pixels far, the margin of an overlap of 16."""
    levels, student = pixels(*shape), local_student(3)
    expected = make_upscaler(student)(levels)
    assert np.abs(expected.astype(int) - make_upscaler(identity)(levels)).mean() > 1
    for tiling, batch_size in ((Tiling(96, 16), 1), (Tiling(32, 16), 7), (Tiling(256, 16), 1)):
        other = make_upscaler(student, tiling=tiling, batch_size=batch_size)(levels)
        assert np.abs(other.astype(int) - expected).max() <= 1
        assert (other != expected).mean() < 1e-3
    assert (make_upscaler(student, seed=1)(levels) != expected).mean() > 0.3


def test_a_network_that_reaches_beyond_the_overlap_needs_context() -> None:
    """Of 4 pixels; an overlap of 4 has a margin of 1."""
    levels, student = pixels(60, 50, 3), local_student(3)
    expected = make_upscaler(student)(levels).astype(int)
    without, with_context = (
        np.abs(make_upscaler(student, tiling=Tiling(32, 4, context=context))(levels) - expected) for context in (0, 4)
    )
    assert with_context.max() <= 1 and (with_context > 0).mean() < 1e-3
    assert without.max() > 3


def test_noise_depends_on_the_place_alone() -> None:
    whole = noise_window(3, 0, 2, range(-70, 200), range(-10, 150))
    part = noise_window(3, 0, 2, range(-3, 100), range(60, 129))
    assert torch.equal(part, whole[:, 67:170, 70:139])
    assert abs(whole.mean()) < 0.02 and abs(whole.std() - 1) < 0.02
    for other in (
        noise_window(4, 0, 2, range(-3, 100), range(60, 129)),
        noise_window(3, 1, 2, range(-3, 100), range(60, 129)),
    ):
        assert abs((other * part).mean()) < 0.05


def test_a_student_of_grey_pictures_upscales_colours_apart() -> None:
    levels, grey = pixels(20, 30), make_upscaler(local_student(1), channels=1)
    apart = np.concatenate([grey(levels[..., [channel]]) for channel in range(3)], 2)
    assert (grey(levels) == apart).all()


def test_a_student_of_colours_upscales_grey() -> None:
    levels = pixels(20, 30, 1)
    upscaler = make_upscaler(identity)
    assert (upscaler(levels) == upscaler(levels.repeat(3, 2))[..., :1]).all()
    deep = levels.astype(np.uint16) * 257
    assert np.abs(upscaler(deep).astype(float) / 257 - upscaler(levels)).max() <= 0.5


@pytest.mark.parametrize("factor, size", [(3, (60, 90)), (1, (20, 30)), (0.25, (5, 8)), (5.5, (110, 165))])
def test_other_factors_resize_the_result(factor: float, size: tuple[int, int]) -> None:
    levels, upscaler = pixels(20, 30), make_upscaler(local_student(3))
    result = upscaler(levels, factor)
    assert result.shape == (*size, 3)
    twice_rounded = resize(upscaler(levels), *size, levels.dtype)
    assert np.abs(result.astype(int) - twice_rounded).max() <= 1


def test_numbers_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="the network's output is not finite"):
        make_upscaler(lambda latents, condition, noises: condition["image"] / 0)(pixels(4, 4))

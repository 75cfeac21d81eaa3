"""A one-step generator that upscales pictures of any size, tile by tile, over one field of noise."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from onestep.denoiser import Condition, map_condition
from onestep.evaluation.generate import SampleFunction
from onestep.upscaling.colour import ColourFix, fix_colour
from onestep.upscaling.noise import noise_window
from onestep.upscaling.resize import Resized, resize, to_levels
from onestep.upscaling.tiles import Tiling, Window, blend


@dataclass(frozen=True)
class Upscaler:
    """Upscales pictures by a network that was trained for one ``factor``.

    A pixel's noise depends on the seed and its place alone, so that the result does not depend on the batch, and on the
    tiles only as far as the network sees beyond their overlap.

    Args:
        student: maps noise, ``{"image": y}`` with the bicubic picture y, and further noise to pictures [B, C, H, W].
        channels: of the student, 1 or 3. One of grey pictures upscales each colour alone, with the same noise; one of
            colours upscales grey as a colour picture, and the result is the mean of its channels.
        factor: of the student.
        tiling: of the result.
        batch_size: tiles at a time.
        seed: of the noise.
        fix: correction of the colours.
        accelerator: device and precision.
        label: one-hot class [label_dim] of the pictures, for a student of classes; None for none.
    """

    student: SampleFunction
    channels: int
    factor: float
    tiling: Tiling
    batch_size: int
    seed: int
    fix: ColourFix
    accelerator: Accelerator
    label: Tensor | None = None

    def size(self, levels: np.ndarray) -> tuple[int, int]:
        """Height and width of a picture [H, W, C] after the student."""
        return size_of(levels, self.factor)

    def __call__(
        self, levels: np.ndarray, factor: float | None = None, advance: Callable[[int], object] = lambda tiles: None
    ) -> np.ndarray:
        """The upscaled picture [H, W, C], with levels of the same bits.

        Args:
            levels: pixels [h, w, 1 or 3] of 8 or 16 bits.
            factor: of the result; another than the student's by a bicubic resize at the end.
            advance: is called with the number of finished tiles.

        Raises:
            ValueError: if the network's output is not finite.
        """
        height, width = self.size(levels)
        bicubic = Resized(levels, height, width)
        later = size_of(levels, self.factor if factor is None else factor)
        steps_follow = self.fix != "none" or later != (height, width)
        # Between the steps 16 bits, so that only the last one rounds to 8.
        picture = np.empty(bicubic.shape, np.uint16 if steps_follow else levels.dtype)

        def predict(windows: Sequence[Window]) -> Tensor:
            tiles = self._predict(bicubic, windows)
            advance(len(windows))
            return tiles

        for top, strip in blend(predict, height, width, self.tiling, self.batch_size):
            picture[top : top + strip.shape[1]] = to_levels(strip.float(), picture.dtype)
        if self.fix != "none":
            picture = fix_colour(picture, bicubic, self.fix)
        if steps_follow:
            picture = resize(picture, *later, levels.dtype)
        return picture

    @torch.no_grad()
    def _predict(self, bicubic: Resized, windows: Sequence[Window]) -> Tensor:
        """The pixels [B, C, h, w] of windows, on the CPU."""
        given = torch.stack([bicubic.window(*window) for window in windows])
        colours = given.shape[1]
        copies = colours if self.channels == 1 else 1
        condition: Condition = {"image": given.flatten(0, 1)[:, None] if self.channels == 1 else given}
        if self.channels > colours:
            condition["image"] = given.expand(-1, self.channels, -1, -1)
        if self.label is not None:
            condition["labels"] = self.label.expand(len(windows) * copies, -1)
        device = self.accelerator.device
        noises = (noise.repeat_interleave(copies, 0).to(device) for noise in self._noises(windows))
        with self.accelerator.autocast():
            tiles = self.student(next(noises), map_condition(lambda tensor: tensor.to(device), condition), noises)
        tiles = tiles.float().cpu()
        if not tiles.isfinite().all():
            raise ValueError("the network's output is not finite: check its weights and the precision")
        return tiles.unflatten(0, (-1, copies))[:, :, 0] if copies > 1 else self._as_colours(tiles, colours)

    def _as_colours(self, tiles: Tensor, colours: int) -> Tensor:
        return tiles.mean(1, keepdim=True) if tiles.shape[1] > colours else tiles

    def _noises(self, windows: Sequence[Window]) -> Iterator[Tensor]:
        """Noise [B, C, h, w] of each of the student's steps, without end."""
        for step in count():
            yield torch.stack([noise_window(self.seed, step, self.channels, *window) for window in windows])


def size_of(levels: np.ndarray, factor: float) -> tuple[int, int]:
    """Height and width of a picture [H, W, C], times a factor."""
    return max(1, int(levels.shape[0] * factor + 0.5)), max(1, int(levels.shape[1] * factor + 0.5))

"""Degradation of images to a lower resolution: area and bicubic reduction, and the interface of random models."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from onestep.data.jpeg import rounded
from onestep.images import from_uint8
from onestep.ranges import checked
from onestep.seeding import seeded_rng

#: By how much sides become shorter, such as 4 or 2.5.
Factor = Annotated[float, Ge(1), Le(64)]

#: The key of the random numbers of an image, such as (seed, index).
Key = tuple[int, ...]


@dataclass(eq=False)
class Degradation(ABC):
    """A function from images to images of a lower resolution, as 8-bit files hold them.

    Args:
        factor: by how much the sides become shorter; a new side is rounded to whole pixels, and is 1 at least.
    """

    factor: Factor

    def __call__(self, images: Tensor, keys: Sequence[Key]) -> Tensor:
        """The degraded images [B, C, h, w] in [-1, 1], float32 on the CPU.

        A row is a function of its image and its key alone, not of the batch, the process or the order.

        Args:
            images: [B, C, H, W] in [-1, 1], with 1 or 3 channels for a random model.
            keys: of the random numbers of each image.
        """
        size = self.size(images.shape[2], images.shape[3])
        levels = (images.detach().cpu().double() + 1) * 127.5
        whole = levels.round()  # of 8-bit images, but for the error of float32, which would decide on halves below
        levels = torch.where((levels - whole).abs() < 1e-4, whole, levels)
        low = [self.degrade(image[None], size, seeded_rng(*key))[0] for image, key in zip(levels, keys, strict=True)]
        return from_uint8(rounded(torch.stack(low)).clamp(0, 255))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the degraded image of one of ``height`` and ``width``."""
        return max(1, round(height / self.factor)), max(1, round(width / self.factor))

    @abstractmethod
    def degrade(self, levels: Tensor, size: tuple[int, int], rng: torch.Generator) -> Tensor:
        """The grey levels [1, C, *size] of an image of grey levels [1, C, H, W] from 0 to 255, float64."""


@checked
@dataclass(eq=False)
class AreaReduction(Degradation):
    """The mean over the area of each new pixel, which may cover old ones in part."""

    def degrade(self, levels: Tensor, size: tuple[int, int], rng: torch.Generator) -> Tensor:
        return reduce_area(levels, size)


@checked
@dataclass(eq=False)
class BicubicReduction(Degradation):
    """Antialiased bicubic interpolation, as MATLAB's imresize and Pillow's: the benchmark of super-resolution."""

    def degrade(self, levels: Tensor, size: tuple[int, int], rng: torch.Generator) -> Tensor:
        return bicubic(levels, size)


def reduce_area(images: Tensor, size: tuple[int, int]) -> Tensor:
    """``images`` [B, C, H, W] at a smaller ``size`` (h, w), by the mean over the area of each new pixel."""
    rows, columns = (_overlaps(old, new) for old, new in zip(images.shape[2:], size, strict=True))
    return rows.to(images) @ images @ columns.to(images).T


def bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """``images`` [B, C, H, W] at another ``size`` (h, w), by Keys's kernel with a = -1/2, antialiased."""
    return F.interpolate(images, size, mode="bicubic", antialias=True)


def enlarge(low: Tensor, size: tuple[int, int]) -> Tensor:
    """Degraded images [B, C, h, w] in [-1, 1] at the ``size`` (H, W) of what is to be restored: the condition.

    Bicubic; what overshoots [-1, 1] beside an edge is clipped.
    """
    return low if tuple(low.shape[2:]) == tuple(size) else bicubic(low, size).clamp(-1, 1)


def _overlaps(old: int, new: int) -> Tensor:
    """The shares [new, old] of old pixels in each new one, along one axis."""
    ends = torch.arange(1, new + 1, dtype=torch.float64)[:, None] * old / new
    places = torch.arange(old, dtype=torch.float64)
    inside = torch.minimum(ends, places + 1) - torch.maximum(ends - old / new, places)
    return inside.clamp(min=0) * new / old

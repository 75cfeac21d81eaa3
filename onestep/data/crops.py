"""Random crops of photographs at their native resolution."""

from collections import OrderedDict
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le

from onestep.data.image_folder import ImageFolder
from onestep.images import stored_size
from onestep.ranges import Count, Side, checked
from onestep.seeding import seeded_rng

_TURNS = 8  # of a square: by quarters, and mirrored


@checked
@dataclass(eq=False)
class ImageCrops(ImageFolder):
    """Random square crops of the images of a folder, which are not resized.

    Image ``i`` is a crop of the file ``i`` modulo their number. Its place and its turn are functions of ``random_seed``
    and ``i``. Each process decodes a file once, and keeps the last ones. For the other arguments see
    :class:`onestep.data.stored.EncodedImages`.

    Args:
        size: height and width of a crop.
        crops: crops of each file.
        turns: True to turn and mirror each crop at random, in one of eight ways.
        cache: gigabytes of decoded files that a process keeps, three bytes for each pixel; one file at least.

    Raises:
        ValueError: as :class:`ImageFolder`, and for an image that is smaller than a crop, with its name.
    """

    _: KW_ONLY
    size: Side
    crops: Count = 1
    turns: bool = False
    cache: Annotated[float, Ge(0), Le(1000)] = 2.0

    def __post_init__(self) -> None:
        self._decoded: OrderedDict[int, np.ndarray] = OrderedDict()
        super().__post_init__()
        for position in map(int, self.positions):
            sides = stored_size(Path(self.path, self.names[position]))
            if sides is not None:  # a damaged file is an error at its access
                self._check_size(position, *sides)  # EXIF may exchange them, which matters to no square
        self.image_shape = (self.image_shape[0], self.size, self.size)
        self.copies = self.crops

    def __len__(self) -> int:
        return len(self.positions) * self.crops

    def _processing(self) -> dict[str, Any]:
        own = {"size": self.size, "crops": self.crops, "turns": self.turns, "random_seed": self.random_seed}
        return super()._processing() | own

    def _image(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        position = int(self.positions[index % len(self.positions)])
        pixels = self._kept(position)
        if pixels.shape[0] != self.image_shape[0]:
            raise ValueError(
                f"{self.path}: {self.names[position]!r} has {pixels.shape[0]} channels, the first image "
                f"{self.image_shape[0]}: set data.channels"
            )
        rng = seeded_rng(self.random_seed, index)
        top, left = (int(torch.randint(side - self.size + 1, (), generator=rng)) for side in pixels.shape[1:])
        crop = pixels[:, top : top + self.size, left : left + self.size]
        if not self.turns:
            return crop
        quarters, mirrored = divmod(int(torch.randint(_TURNS, (), generator=rng)), 2)
        crop = np.rot90(crop, quarters, (1, 2))
        return crop[:, :, ::-1] if mirrored else crop

    def _kept(self, position: int) -> np.ndarray:
        """The pixels of a stored image, of which the last are kept."""
        pixels = self._decoded.pop(position, None)
        if pixels is None:
            pixels = self._named_pixels(position)
            self._check_size(position, pixels.shape[2], pixels.shape[1])
        self._decoded[position] = pixels
        while len(self._decoded) > 1 and sum(kept.nbytes for kept in self._decoded.values()) > self.cache * 1e9:
            self._decoded.popitem(last=False)
        return pixels

    def _check_size(self, position: int, width: int, height: int) -> None:
        if min(width, height) < self.size:
            raise ValueError(
                f"{self.path}: {self.names[position]!r} has {width} x {height} pixels, and crops have {self.size}: "
                "remove it, or set a smaller size of the crops"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_decoded": OrderedDict()}

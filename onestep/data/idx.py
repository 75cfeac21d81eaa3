"""MNIST's IDX files: grey images and their classes, as Fashion-MNIST, KMNIST and EMNIST have them too."""

import gzip
import zlib
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onestep.data.stored import Contents, StoredImages

_MAX_BYTES = 1 << 30  # of one file, unpacked
_PREFIXES = {"train": "train", "test": "t10k"}


@dataclass(eq=False)
class IDXImages(StoredImages):
    """The images of ``<train or t10k>-images-idx3-ubyte`` and their classes, in memory as bytes.

    The files may be packed (.gz). See :class:`onestep.data.stored.StoredImages` for the other arguments.

    Args:
        path: the folder of the four files.
        split: train or test.
        pad_to: black pixels around the image up to this side, such as 32 for networks that halve it; None for none.

    Raises:
        ValueError: if a file is missing, is no IDX file of bytes or is cut short.
    """

    _: KW_ONLY
    split: str
    pad_to: int | None = None

    def open(self) -> Contents:
        if self.split not in _PREFIXES:
            raise ValueError(f"split={self.split}: choose one of {', '.join(_PREFIXES)}")
        prefix = _PREFIXES[self.split]
        self.stored = self._padded(read_idx(Path(self.path), f"{prefix}-images-idx3-ubyte", dimensions=3))
        names = [f"image {index}" for index in range(len(self.stored))]
        if not self.use_labels:
            return Contents(names)
        labels = read_idx(Path(self.path), f"{prefix}-labels-idx1-ubyte", dimensions=1).astype(np.int64)
        if len(labels) != len(names):
            raise ValueError(f"{self.path}: {len(names)} images, but {len(labels)} labels in the split {self.split}")
        return Contents(names, labels, int(labels.max(initial=-1)) + 1)

    def _padded(self, images: np.ndarray) -> np.ndarray:
        if self.pad_to is None:
            return images
        height, width = images.shape[1:]
        if self.pad_to < max(height, width):
            raise ValueError(f"pad_to={self.pad_to} is less than the images' {height} x {width}")
        top, left = (self.pad_to - height) // 2, (self.pad_to - width) // 2
        around = ((0, 0), (top, self.pad_to - height - top), (left, self.pad_to - width - left))
        return np.pad(images, around)

    def pixels(self, position: int) -> np.ndarray:
        return self.stored[position][None]

    def content(self, position: int) -> bytes:
        return self.stored[position].tobytes()

    def _processing(self) -> dict[str, Any]:
        return super()._processing() | {"shape": self.stored.shape[1:]}


def read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """The bytes of an IDX file, uint8 [...], of which there are as many as its header says.

    Raises:
        ValueError: naming the file.
    """
    file = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if file is None:
        raise ValueError(f"{folder}: no {name} or {name}.gz there; give the folder of the four IDX files")
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
            magic = stream.read(4)
            if magic != bytes([0, 0, 8, dimensions]):
                raise ValueError(f"it starts with {magic.hex()}, not with 000008{dimensions:02x}")
            shape = tuple(int(size) for size in np.frombuffer(stream.read(4 * dimensions), ">u4"))
            size = int(np.prod(shape, dtype=object))
            if len(shape) != dimensions or size > _MAX_BYTES:
                raise ValueError(f"the shape {shape} in its header cannot be right")
            content = stream.read(size + 1)  # no more than promised, whatever it unpacks to
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{file}: no IDX file of bytes, or a damaged one: {error}") from error
    if len(content) != size:
        raise ValueError(f"{file}: damaged: {size:,} bytes promised, {len(content):,} or more there")
    return np.frombuffer(content, np.uint8).reshape(shape)

"""IDX files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST: grey images and their classes."""

import gzip
import zlib
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onestep.data.stored import Contents, StoredImages
from onestep.ranges import Side, checked
from onestep.reading import one_line

_MAX_BYTES, _MAX_IMAGES = 3 << 28, 1 << 22  # of one uncompressed file; EMNIST has 640 million, and 814,255
_PREFIXES = {"train": "train", "test": "t10k"}


@checked
@dataclass(eq=False)
class IDXImages(StoredImages):
    """The images of ``<train or t10k>-images-idx3-ubyte`` and their classes, in memory as bytes.

    The files may be compressed (.gz). For the other arguments see :class:`onestep.data.stored.StoredImages`.

    Args:
        path: the folder of the four files.
        split: train or test.
        pad_to: height and width after padding with black pixels, such as 32 for networks that halve it; None for no
            padding.

    Raises:
        ValueError: if a file is missing, truncated or not an IDX file of bytes.
    """

    _: KW_ONLY
    split: Literal["train", "test"]
    pad_to: Side | None = None

    def open(self) -> Contents:
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
            raise ValueError(
                f"pad_to={self.pad_to}: expected at least the images' {height} x {width}, or null for no padding"
            )
        top, left = (self.pad_to - height) // 2, (self.pad_to - width) // 2
        padding = ((0, 0), (top, self.pad_to - height - top), (left, self.pad_to - width - left))
        return np.pad(images, padding)

    def pixels(self, position: int) -> np.ndarray:
        return self.stored[position][None]

    def content(self, position: int) -> bytes:
        return self.stored[position].tobytes()

    def _processing(self) -> dict[str, Any]:
        return super()._processing() | {"shape": self.stored.shape[1:]}


def read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """The uint8 array of an IDX file.

    Raises:
        ValueError: if the file is missing, or its size is not that of its header.
    """
    file = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if file is None:
        raise ValueError(f"{folder}: it has no {name} or {name}.gz: expected the folder of the four IDX files")
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
            magic = stream.read(4)
            if magic != bytes([0, 0, 8, dimensions]):
                raise ValueError(f"it starts with {magic.hex()}, expected 000008{dimensions:02x}")
            shape = tuple(int(size) for size in np.frombuffer(stream.read(4 * dimensions), ">u4"))
            size = int(np.prod(shape, dtype=object))
            if len(shape) != dimensions or not 0 < size <= _MAX_BYTES or shape[0] > _MAX_IMAGES:
                raise ValueError(
                    f"its header has the shape {shape}, expected {dimensions} sizes from 1, at most {_MAX_IMAGES:,} "
                    f"images and {_MAX_BYTES:,} bytes"
                )
            content = np.empty(size, np.uint8)
            found = 0
            while count := stream.readinto(content.data[found:]):
                found += count
            found += len(stream.read(1))  # a compressed file could expand to more
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(
            f"{file}: expected an IDX file of bytes, and it is another file or damaged: {one_line(error, 500)}"
        ) from error
    if found != size:
        raise ValueError(f"{file}: it is damaged: its header says {size:,} bytes, found {found:,} or more")
    return content.reshape(shape)

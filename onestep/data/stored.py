"""The base of datasets on disk, which read each image at its access, in any number of processes."""

import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import MinLen
from torch import Tensor
from tqdm.auto import tqdm

from onestep.data.dataset import ImageDataset, cycle_of_classes
from onestep.denoiser import Condition
from onestep.files import hash_parts
from onestep.images import DamagedImageError, decode_image, from_uint8
from onestep.ranges import Count, NonNegativeInt, PathText, Seed, Side
from onestep.reading import one_line


@dataclass(frozen=True)
class Contents:
    """The names of stored images, their classes [N] or None, and the number of classes."""

    names: Sequence[str]
    labels: np.ndarray | None = None
    num_classes: int = 0


@dataclass(eq=False)
class StoredImages(ImageDataset):
    """Images on disk. A subclass lists the images and reads one.

    Args:
        path: file or folder of the images.
        use_labels: False to ignore the labels.
        num_classes: number of classes, for a teacher with more of them than the images have; None for the highest label
            plus one.
        classes: the teacher's class of each class of the images, in their order; one class for images without any. None
            for equal numbers.
        max_size: size of a random subset, in the stored order, the same as EDM's; None for all images.
        random_seed: seed of the subset.
        xflip: append the mirror images after all images.
        skip_damaged: decode every image once at the start, and omit the damaged ones with a warning.

    Raises:
        ValueError: if there are no images, or a label is above the number of classes. Reading an image raises
            :class:`DamagedImageError` if it cannot be decoded, and ValueError if its shape is not that of the first
            image.
    """

    path: PathText
    _: KW_ONLY
    use_labels: bool = True
    num_classes: Count | None = None
    classes: Annotated[Sequence[NonNegativeInt], MinLen(1)] | None = None
    max_size: Count | None = None
    random_seed: Seed = 0
    xflip: bool = False
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        contents = self.open()
        self.names = contents.names
        positions = np.arange(len(self.names), dtype=np.int64)
        if self.max_size is not None and self.max_size < len(positions):
            np.random.RandomState(self.random_seed).shuffle(positions)
            positions = np.sort(positions[: self.max_size])
        #: Position of each image, without mirror images, among all stored images.
        self.positions = self._intact(positions) if self.skip_damaged else positions
        if not len(self.positions):
            raise ValueError(f"{self.path}: it has no {'intact ' if len(positions) else ''}images")
        self.labels, found = (contents.labels, contents.num_classes) if self.use_labels else (None, 0)
        if self.classes is not None:
            self.labels, found = self._of_teacher(self.classes, self.labels, found), max(self.classes) + 1
        self.label_dim = 0 if self.labels is None else self._count_classes(self.labels[self.positions], found)
        self.image_shape = self._named_pixels(self.positions[0]).shape
        self.copies = 2 if self.xflip else 1

    def _of_teacher(self, classes: Sequence[int], labels: np.ndarray | None, found: int) -> np.ndarray:
        """The images' labels by the teacher's numbers."""
        expected = 1 if labels is None else found
        if len(classes) != expected or len({*classes}) < expected:
            has = "no classes" if labels is None else f"{found} classes"
            raise ValueError(
                f"data.classes={list(classes)}: {self.path} has {has}; expected {expected} different "
                f"number{'s'[: expected - 1]}, the teacher's for each"
            )
        of = np.asarray(classes, dtype=np.int64)
        return np.full(len(self.names), of[0]) if labels is None else of[labels]

    def _count_classes(self, labels: np.ndarray, found: int) -> int:
        if self.num_classes is not None and self.num_classes < found:
            raise ValueError(
                f"data.num_classes={self.num_classes}: {self.path} has {found} classes; set at least {found}, or null"
            )
        count, used = self.num_classes or found, len(np.unique(labels))
        self.class_cycle = cycle_of_classes(labels, count)
        if used < count / 2:
            warnings.warn(f"{self.path}: only {used:,} of {count:,} classes have images", stacklevel=2)
        return count

    @abstractmethod
    def open(self) -> Contents:
        """List the stored images; called once, at the start."""

    @abstractmethod
    def pixels(self, position: int) -> np.ndarray:
        """The uint8 pixels [C, H, W] of a stored image.

        Raises:
            DamagedImageError: if it cannot be read.
            ValueError: for an intact image that is unsuitable.
        """

    @abstractmethod
    def content(self, position: int) -> bytes:
        """Bytes that identify a stored image's pixels: its file, or a stored checksum."""

    def __len__(self) -> int:
        return len(self.positions) * (2 if self.xflip else 1)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Condition]:
        images = from_uint8(torch.from_numpy(np.stack([self._image(index) for index in indices])))
        if self.labels is None:
            return images, {}
        labels = self.labels[self.positions[np.asarray(indices) % len(self.positions)]]
        return images, {"labels": F.one_hot(torch.from_numpy(labels), self.label_dim).float()}

    @property
    def description(self) -> str:
        return f"{Path(self.path).name}, {len(self):,} images"

    def fingerprint(self) -> str:
        positions = tqdm(self.positions, desc=f"hashing {self.path}", leave=False, delay=2)
        contents = (self.content(int(position)) for position in positions)
        labels = b"" if self.labels is None else np.ascontiguousarray(self.labels[self.positions]).tobytes()
        return hash_parts(chain([repr(self._processing()), labels], contents))

    def _processing(self) -> dict[str, Any]:
        """The settings of the processing of stored images."""
        return {"xflip": self.xflip}

    def _image(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        mirrored, place = divmod(index, len(self.positions))
        pixels = self._named_pixels(self.positions[place])
        if pixels.shape != self.image_shape:
            raise ValueError(
                f"{self.path}: {self.names[self.positions[place]]!r} has the shape {pixels.shape}, expected that of "
                f"the first image, {self.image_shape}: set data.resolution and data.channels, or convert the images"
            )
        return pixels[:, :, ::-1] if mirrored else pixels

    def _named_pixels(self, position: int) -> np.ndarray:
        name = self.names[position]
        try:
            return self.pixels(int(position))
        except DamagedImageError as error:
            raise DamagedImageError(
                f"{self.path}: the image {name!r} is damaged ({one_line(error, 500)}): replace it, or omit damaged "
                "images with data.skip_damaged=true"
            ) from error
        except ValueError as error:
            raise ValueError(f"{self.path}: the image {name!r}: {one_line(error, 500)}") from error

    def _intact(self, positions: np.ndarray) -> np.ndarray:
        kept, damaged = [], []
        for position in tqdm(positions, desc=f"checking {self.path}", leave=False, delay=2):
            try:
                self._named_pixels(position)
                kept.append(position)
            except DamagedImageError:
                damaged.append(self.names[position])
        if damaged:
            shown = ", ".join(damaged[:10]) + (", ..." if len(damaged) > 10 else "")
            warnings.warn(
                f"{self.path}: {len(damaged)} of {len(positions)} images are damaged and omitted: {shown}",
                stacklevel=2,
            )
        return np.array(kept, dtype=np.int64)


@dataclass(eq=False)
class EncodedImages(StoredImages):
    """Encoded images; see also :class:`StoredImages`.

    Args:
        resolution, channels: see :func:`onestep.images.decode_image`.
    """

    _: KW_ONLY
    resolution: Side | None = None
    channels: Literal[1, 3] | None = None

    @abstractmethod
    def encoded(self, position: int) -> bytes:
        """The bytes of a stored image's file.

        Raises:
            DamagedImageError: if they cannot be read.
        """

    def pixels(self, position: int) -> np.ndarray:
        size = None if self.resolution is None else (self.resolution, self.resolution)
        return decode_image(self.encoded(position), size, self.channels)

    def content(self, position: int) -> bytes:
        return self.encoded(position)

    def _processing(self) -> dict[str, Any]:
        return super()._processing() | {"resolution": self.resolution, "channels": self.channels}


class PerProcess:
    """A file that each process opens for itself, because a forked process shares the file position of its parent.

    Args:
        opener: opens the file; pickle must be able to send it to a worker.
    """

    def __init__(self, opener: Callable[[], Any]) -> None:
        self.opener = opener
        self._opened: tuple[int, Any] | None = None

    def get(self) -> Any:
        """The file as this process opened it."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self.opener())
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"opener": self.opener, "_opened": None}


def class_labels(labels: Sequence[Any], names: Sequence[str], place: str) -> np.ndarray:
    """Labels as int64 [N].

    Raises:
        ValueError: for a label that is not an integer from 0; a whole float is one.
    """
    for label, name in zip(labels, names, strict=True):
        whole = isinstance(label, int) or (isinstance(label, float) and label.is_integer())
        if isinstance(label, bool) or not whole or not 0 <= label < 1 << 20:
            raise ValueError(
                f"{place}: the label of {name!r} is {label!r}, expected an integer from 0 to 1,048,575: correct it, "
                "or set data.use_labels=false"
            )
    return np.array(labels, dtype=np.int64)

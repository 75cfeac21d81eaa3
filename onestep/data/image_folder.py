"""A folder of images, with a subfolder for each class or without subfolders."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onestep.data.listing import files_below, image_names, is_hidden
from onestep.data.stored import Contents, EncodedImages
from onestep.images import SUFFIXES, read_file
from onestep.ranges import checked


@checked
@dataclass(eq=False)
class ImageFolder(EncodedImages):
    """The images of a folder, in the order of their paths; see :data:`onestep.images.SUFFIXES`.

    The first folder of each path is its class. Classes are numbered in the order of their names as text, like in
    torchvision's ImageFolder. Images directly in the folder have no labels. Names that begin with a dot are ignored.
    For the arguments see :class:`onestep.data.stored.EncodedImages`.

    Raises:
        ValueError: if the folder does not exist, has images both in subfolders and directly in it, or has a subfolder
            without images.
    """

    def open(self) -> Contents:
        root = Path(self.path)
        if not root.is_dir():
            raise ValueError(
                f"{self.path}: no such folder: expected one with images, or with a subfolder for each class"
            )
        names = image_names(files_below(root), self.path)
        if not self.use_labels:
            return Contents(names)
        folders = [name.partition("/")[0] if "/" in name else None for name in names]
        found = {folder for folder in folders if folder is not None}
        if not found:
            return Contents(names)
        if None in folders:
            raise ValueError(
                f"{self.path}: {names[folders.index(None)]!r} is next to subfolders, so that its class is unknown: "
                "move such images into a subfolder, or set data.use_labels=false"
            )
        classes = sorted(file.name for file in root.iterdir() if file.is_dir() and not is_hidden(file.name))
        empty = sorted(set(classes) - found)
        if empty:  # without it, all later classes would have other numbers
            raise ValueError(
                f"{self.path}: the class {empty[0]!r} has no images ({', '.join(SUFFIXES)}): remove this folder, "
                "convert its images, or set data.use_labels=false"
            )
        if all(name.isdecimal() for name in classes) and sorted(classes, key=int) != classes:
            warnings.warn(
                f"{self.path}: classes are numbered in the order of their names as text: {', '.join(classes[:4])}, "
                "...; for the order of their values write them with equally many digits",
                stacklevel=2,
            )
        number = {name: index for index, name in enumerate(classes)}
        return Contents(names, np.array([number[str(folder)] for folder in folders], dtype=np.int64), len(classes))

    def encoded(self, position: int) -> bytes:
        return read_file(Path(self.path, self.names[position]))

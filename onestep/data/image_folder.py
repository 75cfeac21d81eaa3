"""A folder of images, with a subfolder for each class or without subfolders."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onestep.data.stored import Contents, EncodedImages
from onestep.images import SUFFIXES, read_file


@dataclass(eq=False)
class ImageFolder(EncodedImages):
    """The images of a folder, in the order of their paths; PNG, JPEG, WebP or BMP.

    The first folder of each path is its class. Classes are numbered in the order of their names, like in torchvision's
    ImageFolder. Images directly in the folder have no labels. For the arguments see
    :class:`onestep.data.stored.EncodedImages`.

    Raises:
        ValueError: if the folder does not exist, or has images both in subfolders and directly in it.
    """

    def open(self) -> Contents:
        root = Path(self.path)
        if not root.is_dir():
            raise ValueError(
                f"{self.path}: no such folder: expected one with images, or with a subfolder for each class"
            )
        names = sorted(
            Path(folder, file).relative_to(root).as_posix()
            for folder, _, files in os.walk(root, followlinks=True)
            for file in files
            if file.lower().endswith(SUFFIXES)
        )
        if not self.use_labels:
            return Contents(names)
        folders = [name.partition("/")[0] if "/" in name else None for name in names]
        classes = sorted({folder for folder in folders if folder is not None})
        if not classes:
            return Contents(names)
        if None in folders:
            raise ValueError(
                f"{self.path}: {names[folders.index(None)]!r} is next to subfolders, so that its class is unknown: "
                "move such images into a subfolder, or set data.use_labels=false"
            )
        number = {name: index for index, name in enumerate(classes)}
        return Contents(names, np.array([number[str(folder)] for folder in folders], dtype=np.int64), len(classes))

    def encoded(self, position: int) -> bytes:
        return read_file(Path(self.path, self.names[position]))

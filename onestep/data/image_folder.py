"""A folder of images, with a subfolder for each class or with none."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onestep.data.stored import Contents, EncodedImages
from onestep.images import MAX_BYTES, SUFFIXES, DamagedImageError


@dataclass(eq=False)
class ImageFolder(EncodedImages):
    """Images of a folder, in the order of their paths; PNG, JPEG, WebP or BMP.

    The first folder of each path is its class; classes are numbered in the order of their names, as torchvision's
    ImageFolder does. Images that lie in the folder itself have no labels. See
    :class:`onestep.data.stored.EncodedImages` for the arguments.

    Raises:
        ValueError: if there is no such folder, or images lie both in subfolders and beside them.
    """

    def open(self) -> Contents:
        root = Path(self.path)
        if not root.is_dir():
            raise ValueError(f"{self.path}: no such folder; give one with images, or with a subfolder for each class")
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
                f"{self.path}: {names[folders.index(None)]!r} lies beside subfolders, so that its class is unknown; "
                "move such images into one, or read all without labels by data.use_labels=false"
            )
        number = {name: index for index, name in enumerate(classes)}
        return Contents(names, np.array([number[str(folder)] for folder in folders], dtype=np.int64), len(classes))

    def encoded(self, position: int) -> bytes:
        file = Path(self.path, self.names[position])
        try:
            if (size := file.stat().st_size) > MAX_BYTES:
                raise DamagedImageError(f"{size:,} bytes are more than {MAX_BYTES:,}")
            return file.read_bytes()
        except OSError as error:
            raise DamagedImageError(str(error)) from error

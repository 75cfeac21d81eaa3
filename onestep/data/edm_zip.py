"""Datasets in the format of StyleGAN and EDM: a zip or folder of images with their labels in dataset.json."""

import json
import os
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onestep.data.stored import Contents, EncodedImages, PerProcess, class_labels
from onestep.images import MAX_BYTES, SUFFIXES, DamagedImageError, check_size, read_file

_LABELS = "dataset.json"
_LABEL_BYTES = 1024  # limit of dataset.json per image, ample for name and number


@dataclass(eq=False)
class EDMZip(EncodedImages):
    """Images of a zip or folder as EDM's ``dataset_tool.py`` writes it, in the order of their names.

    The labels are those of dataset.json, ``{"labels": [["00000/img00000000.png", 6], ...]}``, and optional. No file is
    extracted. For the arguments see :class:`onestep.data.stored.EncodedImages`.

    Raises:
        ValueError: if the path does not exist, or a label is missing or not a class.
    """

    def open(self) -> Contents:
        place = Path(self.path)
        self._zip: PerProcess | None = None
        if place.is_dir():
            found = (Path(folder, file) for folder, _, files in os.walk(place) for file in files)
            names = [str(file.relative_to(place).as_posix()) for file in found]
        elif place.is_file():
            self._zip = PerProcess(partial(_open_zip, place))
            names = self._zip.get().namelist()
        else:
            raise ValueError(f"{self.path}: no such zip or folder: expected the output of EDM's dataset_tool.py")
        images = sorted(name for name in names if name.lower().endswith(SUFFIXES))
        if not self.use_labels or _LABELS not in names:
            return Contents(images)
        return self._labelled(images)

    def _labelled(self, images: list[str]) -> Contents:
        place = f"{self.path}, {_LABELS}"
        try:
            pairs = json.loads(self._bytes(_LABELS, _LABEL_BYTES * (1 + len(images)))).get("labels")
            label_of = None if pairs is None else dict(pairs)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f'{place}: expected {{"labels": [[name, class], ...]}} ({error})') from error
        if label_of is None:
            return Contents(images)
        missing = [name for name in images if name not in label_of]
        if missing:
            raise ValueError(
                f"{place}: no label for {missing[0]!r}, and {len(missing)} are missing: add them, or set "
                "data.use_labels=false"
            )
        labels = class_labels([label_of[name] for name in images], images, place)
        return Contents(images, labels, int(labels.max(initial=-1)) + 1)

    def encoded(self, position: int) -> bytes:
        return self._bytes(self.names[position], MAX_BYTES)

    def content(self, position: int) -> bytes:
        """The checksum in the zip, without reading the image; the bytes in a folder."""
        if self._zip is None:
            return self.encoded(position)
        entry = self._zip.get().getinfo(self.names[position])
        return f"{entry.filename} {entry.file_size} {entry.CRC}".encode()

    def _bytes(self, name: str, limit: int) -> bytes:
        """The bytes of a file of at most ``limit`` bytes; zipfile never reads more than the size in its header."""
        if self._zip is None:
            return read_file(Path(self.path, name), limit)
        try:
            entry = self._zip.get().getinfo(name)
            check_size(entry.file_size, limit)
            return self._zip.get().read(entry)
        except DamagedImageError:
            raise
        except Exception as error:  # zipfile and its decompressors raise many types of errors for damaged bytes
            raise DamagedImageError(f"{type(error).__name__}: {error}") from error


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{path}: expected a zip, and it is another file or damaged: {error}") from error

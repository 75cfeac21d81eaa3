"""Datasets in the format of StyleGAN and EDM: a zip or folder of images with their labels in dataset.json."""

import json
import os
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onestep.data.stored import Contents, EncodedImages, PerProcess, class_labels
from onestep.images import MAX_BYTES, SUFFIXES, DamagedImageError

_LABELS = "dataset.json"
_LABEL_BYTES = 1024  # of dataset.json, an image: more than any name and number need


@dataclass(eq=False)
class EDMZip(EncodedImages):
    """Images of a zip or folder as EDM's ``dataset_tool.py`` writes it, in the order of their names.

    The labels are dataset.json's ``{"labels": [["00000/img00000000.png", 6], ...]}``; without them there are none. No
    file is ever extracted. See :class:`onestep.data.stored.EncodedImages` for the arguments.

    Raises:
        ValueError: if there is nothing to read, or a label is missing or no class.
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
            raise ValueError(f"{self.path}: no such zip or folder; make one with EDM's dataset_tool.py")
        images = sorted(name for name in names if name.lower().endswith(SUFFIXES))
        if not self.use_labels or _LABELS not in names:
            return Contents(images)
        return self._labelled(images)

    def _labelled(self, images: list[str]) -> Contents:
        place = f"{self.path}, {_LABELS}"
        try:
            pairs = json.loads(self._bytes(_LABELS, _LABEL_BYTES * (1 + len(images)))).get("labels")
            of_name = None if pairs is None else dict(pairs)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f'{place}: expected {{"labels": [[name, class], ...]}} ({error})') from error
        if of_name is None:
            return Contents(images)
        missing = [name for name in images if name not in of_name]
        if missing:
            raise ValueError(
                f"{place}: no label for {missing[0]!r}, and {len(missing)} are missing; data.use_labels=false does "
                "without"
            )
        labels = class_labels([of_name[name] for name in images], images, place)
        return Contents(images, labels, int(labels.max(initial=-1)) + 1)

    def encoded(self, position: int) -> bytes:
        return self._bytes(self.names[position], MAX_BYTES)

    def content(self, position: int) -> bytes:
        """The zip's own checksum where there is one: all images are told apart without reading them."""
        if self._zip is None:
            return self.encoded(position)
        entry = self._zip.get().getinfo(self.names[position])
        return f"{entry.filename} {entry.file_size} {entry.CRC}".encode()

    def _bytes(self, name: str, limit: int) -> bytes:
        """A file's bytes, if they are no more than ``limit``: what a zip says of a file's size is known beforehand."""
        try:
            if self._zip is None:
                file = Path(self.path, name)
                size = file.stat().st_size
                return file.read_bytes() if size <= limit else _refuse(size, limit)
            entry = self._zip.get().getinfo(name)
            return self._zip.get().read(entry) if entry.file_size <= limit else _refuse(entry.file_size, limit)
        except DamagedImageError:
            raise
        except Exception as error:  # zipfile and its decompressors raise almost anything at broken bytes
            raise DamagedImageError(f"{type(error).__name__}: {error}") from error


def _refuse(size: int, limit: int) -> bytes:
    raise DamagedImageError(f"{size:,} bytes are more than {limit:,}")


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{path}: no zip, or a damaged one ({error})") from error

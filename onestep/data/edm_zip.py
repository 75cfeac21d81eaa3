"""Datasets in the format of StyleGAN and EDM: a zip or folder of images with their labels in dataset.json."""

import json
import posixpath
import warnings
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onestep.data.listing import files_below, image_names, is_hidden
from onestep.data.stored import Contents, EncodedImages, PerProcess, class_labels
from onestep.images import MAX_BYTES, DamagedImageError, check_size, read_file
from onestep.ranges import checked
from onestep.reading import one_line, parse_json

_LABELS = "dataset.json"
# Limit of dataset.json per image, ample for name and number, and in all: it may be that of a larger dataset.
_LABEL_BYTES, _LEAST_LABEL_BYTES = 256, 1 << 26


@checked
@dataclass(eq=False)
class EDMZip(EncodedImages):
    """Images of a zip or folder as EDM's ``dataset_tool.py`` writes it, in the order of their names.

    The labels are those of dataset.json, ``{"labels": [["00000/img00000000.png", 6], ...]}``, and optional. It lies
    next to the images or above them, and its names are relative to its folder. No file is extracted. For the arguments
    see :class:`onestep.data.stored.EncodedImages`.

    Raises:
        ValueError: if the path does not exist, there are two dataset.json, or a label is missing, contradicts another
            one or is not a class.
    """

    def open(self) -> Contents:
        place = Path(self.path)
        self._zip: PerProcess | None = None
        if place.is_dir():
            names = list(files_below(place))
        elif place.is_file():
            self._zip = PerProcess(partial(_open_zip, place))
            names = [name for name in self._zip.get().namelist() if not name.endswith("/") and not is_hidden(name)]
        else:
            raise ValueError(f"{self.path}: no such zip or folder: expected the output of EDM's dataset_tool.py")
        labels = [name for name in names if posixpath.basename(name).lower() == _LABELS]
        images = image_names((name for name in names if name not in labels), self.path)
        if not self.use_labels or not labels:
            return Contents(images)
        if len(labels) > 1:
            raise ValueError(f"{self.path}: two files of labels, {labels[0]!r} and {labels[1]!r}: remove one")
        return self._labelled(images, labels[0])

    def _labelled(self, images: list[str], file: str) -> Contents:
        place = f"{self.path}, {file}"
        content = self._bytes(file, max(_LEAST_LABEL_BYTES, _LABEL_BYTES * len(images)))
        try:
            values = parse_json(content.decode(json.detect_encoding(content)), dict[str, Any], place)
            pairs = values.get("labels")
            label_of = None if pairs is None else _labels_by_name(pairs, posixpath.dirname(file))
        except (ValueError, TypeError, AttributeError) as error:
            reason = str(error).removeprefix(f"{place}: ")
            raise ValueError(f'{place}: expected {{"labels": [[name, class], ...]}} ({reason})') from error
        if label_of is None:
            warnings.warn(f"{place}: it has no labels: the images have no classes", stacklevel=2)
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
            raise DamagedImageError(f"{type(error).__name__}: {one_line(error, 500)}") from error


def _labels_by_name(pairs: Any, folder: str) -> dict[str, Any]:
    """The labels by the names of images. In ``pairs`` names are relative to ``folder``, or to the root.

    Raises:
        ValueError: for an image with two labels. TypeError or ValueError: for anything but pairs.
    """
    label_of: dict[str, Any] = {}
    for name, label in pairs:
        name = posixpath.normpath(name.replace("\\", "/"))
        if not (folder and name.startswith(f"{folder}/")):
            name = posixpath.join(folder, name)
        if label_of.setdefault(name, label) != label:
            raise ValueError(f"{name!r} has two labels, {label_of[name]} and {label}")
    return label_of


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # also of versions and encodings that zipfile does not know
        raise ValueError(
            f"{path}: expected a zip, and it is another file or damaged: {one_line(error, 500)}"
        ) from error

"""WebDataset shards: tar files, in which members of one name form a sample, such as 000001.jpg and 000001.cls."""

import glob
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from onestep.data.listing import is_hidden, warn_of_others
from onestep.data.stored import Contents, EncodedImages, class_labels
from onestep.images import MAX_BYTES, SUFFIXES, DamagedImageError, check_size
from onestep.ranges import Text, checked
from onestep.reading import one_line

_RECORDS = (".json", ".txt")  # beside the images of a sample
_MAX_SHARDS = 1 << 20
_MAX_HEADER = 1 << 20  # bytes


class _Member(NamedTuple):
    """Position and size of a file in its shard, in bytes."""

    shard: int
    offset: int
    size: int
    name: str


@checked
@dataclass(eq=False)
class WebDataset(EncodedImages):
    """Images of WebDataset shards, in the order of the shards' names and of their members.

    The headers are read once. An image's bytes are then read from their position in the tar, in any order and by any
    worker. Nothing is extracted. The only other members that are read are ``.cls``, the class as a number in text.

    Args:
        path: a folder with .tar files, one such file, or a pattern such as shards/train-{000..127}.tar or shards/*.tar.
        image_suffix: what follows the first dot in the images' names, such as jpg or input.png, where samples have
            several images; None for any image. For the other arguments see
            :class:`onestep.data.stored.EncodedImages`.

    Raises:
        ValueError: if there are no shards, a shard is damaged or compressed, a sample has two images or classes, or
            some images have no class.
    """

    _: KW_ONLY
    image_suffix: Text | None = None

    def open(self) -> Contents:
        self.shards = find_shards(self.path)
        images: dict[str, _Member] = {}
        classes: dict[str, _Member] = {}
        others = Counter[str]()
        for number, shard in enumerate(tqdm(self.shards, desc=f"indexing {self.path}", leave=False, delay=2)):
            for member in _members(shard, number):
                key, suffix = _split(member.name)
                if suffix == "cls":
                    _add(classes, f"{shard}/{key}", member, "classes: remove one")
                elif suffix == self.image_suffix if self.image_suffix else f".{suffix}".endswith(SUFFIXES):
                    _add(images, f"{shard}/{key}", member, "images: choose with data.image_suffix=..., or rename one")
                elif not f".{suffix}".endswith((*_RECORDS, *SUFFIXES)):
                    others[f".{suffix.rpartition('.')[2]}"] += 1
        warn_of_others(others, self.path)
        names = list(images)
        self.members = np.array([member[:3] for member in images.values()], dtype=np.int64).reshape(-1, 3)
        if classes.keys() - images.keys():
            some = ", ".join(sorted(classes.keys() - images.keys())[:3])
            warnings.warn(f"{self.path}: samples with a class and without an image are omitted: {some}", stacklevel=2)
        if not self.use_labels or not classes:
            if self.use_labels:
                warnings.warn(f"{self.path}: it has no .cls members: the images have no classes", stacklevel=2)
            return Contents(names)
        labels = [self._class(classes[name]) if name in classes else None for name in names]
        found = class_labels(labels, names, self.path)
        return Contents(names, found, int(found.max(initial=-1)) + 1)

    def _class(self, member: _Member) -> int:
        text = self._bytes(member, limit=1024).decode(errors="replace").strip()
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise ValueError(
                f"{self.shards[member.shard]}, {member.name!r}: the class is {text[:80]!r}, expected an integer from "
                "0; correct it, or set data.use_labels=false"
            )
        return int(text)

    def encoded(self, position: int) -> bytes:
        shard, offset, size = map(int, self.members[position])
        return self._bytes(_Member(shard, offset, size, self.names[position]), limit=MAX_BYTES)

    def _bytes(self, member: _Member, limit: int) -> bytes:
        try:
            check_size(member.size, limit)
            with Path(self.shards[member.shard]).open("rb") as file:
                file.seek(member.offset)
                return file.read(member.size)
        except (OSError, DamagedImageError) as error:
            raise DamagedImageError(f"{self.shards[member.shard]}, {member.name!r}: {one_line(error, 500)}") from error


def find_shards(path: str) -> list[str]:
    """The tar files of a folder, file or pattern, in order.

    Raises:
        ValueError: if a file is missing or there are none.
    """
    if Path(path).is_dir():
        shards = sorted(str(file) for file in Path(path).glob("*.tar") if not is_hidden(file.name))
    else:
        expanded = _expand(path)
        shards = sorted({file for pattern in expanded for file in (glob.glob(pattern) or [pattern])})
    absent = [shard for shard in shards if not Path(shard).is_file()]
    if absent or not shards:
        raise ValueError(
            f"{path}: no {'such file: ' + absent[0] if absent else 'tar files in it'}; compressed shards (.tar.gz) "
            "must be decompressed, to be read from any position"
        )
    return shards


def _expand(pattern: str) -> list[str]:
    """The names of a pattern such as ``a-{00..02}.tar``; several braces give the product of their ranges."""
    parts: list[list[str]] = []
    whole, names = pattern, 1
    while "{" in pattern:
        before, _, rest = pattern.partition("{")
        body, closed, pattern = rest.partition("}")
        first, dots, last = body.partition("..")
        if not (closed and dots and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ValueError(f"{{{body}}}: expected a range of numbers such as {{000..127}}")
        names *= int(last) - int(first) + 1
        if names > _MAX_SHARDS:
            raise ValueError(f"{whole}: it stands for more than {_MAX_SHARDS:,} files")
        parts += [[before], [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]]
    return ["".join(choice) for choice in product(*parts, [pattern])]


def _split(name: str) -> tuple[str, str]:
    """The key and the lower-case suffix of a member. The suffix follows the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def _add(found: dict[str, _Member], key: str, member: _Member, choose: str) -> None:
    """Raises ValueError for a second member of one ``key``."""
    if key in found:
        shard, _, sample = key.rpartition(".tar/")
        raise ValueError(
            f"{shard}.tar: {found[key].name!r} and {member.name!r} have one key, {sample!r} (the name up to its first "
            f"dot), which has two {choose}"
        )
    found[key] = member


class _Bounded:
    """A file for tarfile without long reads: a header can ask for any number of bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


def _members(shard: str, number: int) -> Iterator[_Member]:
    """Position and name of each regular file that is not hidden."""
    empty = True
    try:
        with Path(shard).open("rb") as file:
            bounded: Any = _Bounded(file)
            with tarfile.open(fileobj=bounded, mode="r:") as tar:  # uncompressed, for reading from any position
                for member in tar:
                    empty = False
                    if member.isreg() and not member.issparse() and not is_hidden(member.name):
                        yield _Member(number, member.offset_data, member.size, member.name)
                    setattr(tar, "members", [])  # noqa: B010  # tarfile keeps all
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        raise ValueError(
            f"{shard}: expected an uncompressed tar, and it is another file or damaged: {one_line(error, 500)}"
        ) from error
    if empty:
        raise ValueError(f"{shard}: it is empty")

"""WebDataset shards: tar files, in which members of one name form a sample, such as 000001.jpg and 000001.cls."""

import glob
import tarfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from onestep.data.stored import Contents, EncodedImages, class_labels
from onestep.images import MAX_BYTES, SUFFIXES, DamagedImageError, check_size


class _Member(NamedTuple):
    """Position and size of a file in its shard, in bytes."""

    shard: int
    offset: int
    size: int


@dataclass(eq=False)
class WebDataset(EncodedImages):
    """Images of WebDataset shards, in the order of the shards' names and of their members.

    The headers are read once. An image's bytes are then read from their position in the tar, in any order and by any
    worker. Nothing is extracted. The only other members that are read are ``.cls``, the class as a number in text.

    Args:
        path: a folder with .tar files, one such file, or a pattern such as shards/train-{000..127}.tar or shards/*.tar.
            For the other arguments see :class:`onestep.data.stored.EncodedImages`.

    Raises:
        ValueError: if there are no shards, a shard is damaged or compressed, or some images have no class.
    """

    def open(self) -> Contents:
        self.shards = find_shards(self.path)
        images: dict[str, _Member] = {}
        labels: dict[str, int] = {}
        for number, shard in enumerate(tqdm(self.shards, desc=f"indexing {self.path}", leave=False, delay=2)):
            for key, suffix, member in _members(shard, number):
                if suffix.endswith(SUFFIXES):
                    if f"{shard}/{key}" in images:
                        raise ValueError(f"{shard}: two images have the key {key!r}")
                    images[f"{shard}/{key}"] = member
                elif suffix == ".cls" and self.use_labels:
                    labels[f"{shard}/{key}"] = self._class(shard, key, member)
        names = list(images)
        self.members = np.array(list(images.values()), dtype=np.int64).reshape(-1, 3)
        if not labels:
            return Contents(names)
        found = class_labels([labels.get(name) for name in names], names, self.path)
        return Contents(names, found, int(found.max(initial=-1)) + 1)

    def _class(self, shard: str, key: str, member: _Member) -> int:
        text = self._bytes(member, limit=20).decode(errors="replace").strip()
        if not text.isdecimal():
            raise ValueError(f"{shard}: the class of {key!r} is {text!r}, expected an integer from 0")
        return int(text)

    def encoded(self, position: int) -> bytes:
        return self._bytes(_Member(*self.members[position]), limit=MAX_BYTES)

    def _bytes(self, member: _Member, limit: int) -> bytes:
        check_size(member.size, limit)
        try:
            with Path(self.shards[member.shard]).open("rb") as file:
                file.seek(member.offset)
                return file.read(member.size)
        except OSError as error:
            raise DamagedImageError(str(error)) from error


def find_shards(path: str) -> list[str]:
    """The tar files of a folder, file or pattern, in order.

    Raises:
        ValueError: if a file is missing or there are none.
    """
    if Path(path).is_dir():
        shards = sorted(str(file) for file in Path(path).glob("*.tar"))
    else:
        expanded = _expand(path)
        shards = sorted({file for pattern in expanded for file in (glob.glob(pattern) or [pattern])})
    absent = [shard for shard in shards if not Path(shard).is_file()]
    if absent or not shards:
        raise ValueError(f"{path}: no {'such file: ' + absent[0] if absent else 'tar files in it'}")
    return shards


def _expand(pattern: str) -> list[str]:
    """The names of a pattern such as ``a-{00..02}.tar``; several braces give the product of their ranges."""
    parts: list[list[str]] = []
    while "{" in pattern:
        before, _, rest = pattern.partition("{")
        body, closed, pattern = rest.partition("}")
        first, dots, last = body.partition("..")
        if not (closed and dots and first.isdecimal() and last.isdecimal() and 0 <= int(last) - int(first) < 1 << 20):
            raise ValueError(f"{{{body}}}: expected a range of numbers such as {{000..127}}")
        parts += [[before], [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]]
    return ["".join(choice) for choice in product(*parts, [pattern])]


def _members(shard: str, number: int) -> list[tuple[str, str, _Member]]:
    """Key, lower-case suffix and position of each regular file. The suffix starts at the first dot."""
    found = []
    try:
        with tarfile.open(shard, "r:") as tar:  # uncompressed, for reading from any position
            for member in tar:
                if not member.isreg() or member.issparse():
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                place = _Member(number, member.offset_data, member.size)
                found.append((folder + slash + stem, (dot + suffix).lower(), place))
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"{shard}: expected an uncompressed tar, and it is another file or damaged: {error}"
        ) from error
    if not found:
        raise ValueError(f"{shard}: it is empty")
    return found

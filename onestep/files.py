"""Files that are complete or absent, and hashes of their content."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor


@contextmanager
def atomic_file(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """A temporary file's path with the same suffix, renamed to ``path`` when the block ends; the folder is made.

    If the block raises, the temporary file is removed and what was at ``path`` is untouched. A killed process may leave
    a temporary file, whose name begins with ``.writing_``. Several processes may write the same ``path``: the last one
    wins.

    Args:
        path: the file to write or replace.
        durable: wait until the file and its name are on the disk.
    """
    path = Path(path)
    temporary = path.with_name(f".writing_{os.getpid()}_{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path, durable: bool = False) -> Iterator[Path]:
    """As :func:`atomic_file`, for an empty temporary folder, which already has the final name.

    ``folder`` must not exist or be empty. The temporary folder is in one whose name begins with ``.writing_``.
    """
    folder = Path(folder).absolute()
    parent = folder.with_name(f".writing_{os.getpid()}_{folder.name}")
    temporary = parent / folder.name
    shutil.rmtree(parent, ignore_errors=True)  # of a killed process that had the same number
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if durable:
            for path in (*temporary.rglob("*"), temporary):
                sync(path)
        os.replace(temporary, folder)
        if durable:
            sync(folder.parent)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a record of a few lines in UTF-8, atomically and durably."""
    with atomic_file(path, durable=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until ``path``, a file or a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors with their names, dtypes and shapes, in whatever order and on whatever device."""
    return hash_parts(
        part
        for name, tensor in sorted(tensors.items())
        for part in (f"{name} {tensor.dtype} {tuple(tensor.shape)}", _content(tensor))
    )


def hash_parts(parts: Iterable[str | bytes | memoryview]) -> str:
    """The SHA-256 of a sequence; each part is hashed alone first, so that ("ab", "c") differs from ("a", "bc")."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return digest.hexdigest()


def _content(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

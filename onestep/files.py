"""Files that are complete or absent, and hashes of their content."""

import hashlib
import json
import math
import os
import re
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_WRITING = f".writing_{socket.gethostname()}_"  # the names of unfinished files and folders, before the process's id


@contextmanager
def atomic_file(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """The path of a temporary file with the same suffix, renamed to ``path`` after the block; the folder is made.

    If the block raises, the temporary file is removed and ``path`` is unchanged. A killed process may leave a temporary
    file, whose name begins with ``.writing_``. If several processes write ``path``, the last one wins. The permissions
    are those of the umask.

    Args:
        path: the file to write or replace.
        durable: wait until the file and its name are on the disk.
    """
    path = Path(path)
    temporary = path.with_name(f"{_WRITING}{os.getpid()}_{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        _follow_umask(temporary.parent, [temporary])
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path, durable: bool = False, replace: bool = False) -> Iterator[Path]:
    """Like :func:`atomic_file`, with an empty temporary folder of the final name.

    ``folder`` must not exist or be empty; with ``replace``, new files replace those of the same names in it, each
    atomically. The parent of the temporary folder has a name that begins with ``.writing_``;
    those of ``folder`` that killed processes left are removed first.
    """
    folder = Path(folder).absolute()
    parent = folder.with_name(f"{_WRITING}{os.getpid()}_{folder.name}")
    temporary = parent / folder.name
    remove_unfinished(folder)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _follow_umask(parent, (path for path in temporary.rglob("*") if path.is_file()))
        if durable:
            for path in (*temporary.rglob("*"), temporary):
                sync(path)
        if replace and folder.is_dir():
            for path in temporary.iterdir():
                os.replace(path, folder / path.name)
        else:
            os.replace(temporary, folder)
        if durable:
            sync(folder.parent)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def remove_unfinished(path: Path) -> None:
    """Remove what processes left that were killed on this machine while they wrote the file or folder ``path``."""
    if not path.parent.is_dir():
        return
    name = re.compile(f"{re.escape(_WRITING)}([0-9]{{1,9}})_{re.escape(path.name)}")
    for left in path.parent.iterdir():
        if (match := name.fullmatch(left.name)) and not _runs(int(match[1])):
            shutil.rmtree(left, ignore_errors=True)
            left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """True if ``process`` is another one and has not ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return process != os.getpid()


def _follow_umask(folder: Path, written: Iterable[Path]) -> None:
    """Give new files in ``folder`` the permissions of the umask: safetensors' are their owner's alone."""
    private = [path for path in written if stat.S_IMODE(path.stat().st_mode) == stat.S_IRUSR | stat.S_IWUSR]
    if private:
        example = folder / f"{_WRITING}{os.getpid()}"  # os.umask reads by a change, which is every thread's
        with example.open("w") as file:
            usual = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        example.unlink(missing_ok=True)
        for path in private:
            path.chmod(usual)


def write_text(path: str | Path, text: str) -> None:
    """Write a record of a few lines in UTF-8, atomically and durably."""
    with atomic_file(path, durable=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(values: Any, indent: int | None = None) -> str:
    """The JSON of plain values. JSON has no number that is not finite: null stands for it."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


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
    """The SHA-256 of tensors with names, dtypes and shapes; independent of order and device."""
    return hash_parts(
        part
        for name, tensor in sorted(tensors.items())
        for part in (f"{name} {tensor.dtype} {tuple(tensor.shape)}", _content(tensor))
    )


def hash_parts(parts: Iterable[str | bytes | memoryview]) -> str:
    """The SHA-256 of the hashes of ``parts``, so that ("ab", "c") differs from ("a", "bc")."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return digest.hexdigest()


def _content(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

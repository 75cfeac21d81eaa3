"""Hostile files, and a context in which reading one must end well."""

import json
import os
import resource
import signal
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

SECONDS = 10
BYTES = 10**9
MARKER = "MARKER"


@contextmanager
def bounded() -> Iterator[None]:
    """Context that fails if it takes more than ten seconds or a gigabyte of memory."""

    def stop(*_: object) -> NoReturn:
        raise AssertionError(f"more than {SECONDS} s")

    before = _peak()
    limit = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 4 * BYTES, limit[1]))  # also for what is asked for and not used
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert _peak() - before < BYTES


@contextmanager
def refused(folder: Path, match: str | None = None) -> Iterator[None]:
    """Context of a read that ends in a ValueError of one line, within bounds, and leaves ``folder`` as it was."""
    files = sorted(folder.rglob("*"))
    with bounded(), pytest.raises(ValueError, match=match) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message and 10 < len(message) < 1000, message
    assert sorted(folder.rglob("*")) == files and not any(path.name == MARKER for path in files)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def place(path: Path, content: Any) -> None:
    """Put ``content`` at ``path``: bytes, text, plain values as JSON, or one of the SPECIAL files."""
    path.unlink(missing_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content in SPECIAL if isinstance(content, str) else False:
        {"pipe": os.mkfifo, "zero": lambda p: p.symlink_to("/dev/zero"), "loop": lambda p: p.symlink_to(p.name),
         "folder": lambda p: p.symlink_to("."), "sparse": _sparse, "absent": lambda p: None}[content](path)  # fmt: skip
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


SPECIAL = ("pipe", "zero", "loop", "folder", "sparse", "absent")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**31)


#: What is no JSON of an object, whoever reads it.
NO_OBJECT: dict[str, Any] = {
    "list": [1, 2], "number": 3, "null": "null", "empty": "", "cut": '{"a": [1, 2', "not_utf8": b'{"a": "\xff"}',
    "deep": '{"a":' * 100_000, "deep_lists": "[" * 100_000, "nan": '{"a": NaN}', "binary": bytes(range(256)) * 16,
    "long_number": '{"a": ' + "9" * 5000 + "}", "large": '{"a": "' + "x" * 2**24 + '"}',
} | {kind: kind for kind in SPECIAL}  # fmt: skip


def safetensors(header: Mapping[str, Any] | bytes, content: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of a header, which may claim another length, and content."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


#: What is no safetensors file of tensors that could be.
NO_TENSORS: dict[str, Any] = {
    "petabytes": safetensors({"a": {"dtype": "F32", "shape": [2**48], "data_offsets": [0, 2**50]}}),
    "overflow": safetensors({"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}}),
    "overlap": safetensors(
        {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}, bytes(8)
    ),
    "backwards": safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8)),
    "hole": safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, bytes(16)),
    "no_dtype": safetensors({"a": {"dtype": "X32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "negative": safetensors({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)),
    "long_header": safetensors(b"{}", length=2**63),
    "short_header": safetensors(b"{}", length=1),
    "no_json": safetensors(b"x" * 100),
    "list_header": safetensors(b"[1, 2]"),
    "deep_header": safetensors(b'{"a":' * 100_000),
    "pickle": b"\x80\x04cos\nsystem\n(S'touch MARKER'\ntR.",
    "empty": b"",
    "sparse": "sparse", "pipe": "pipe", "zero": "zero", "loop": "loop", "folder": "folder", "absent": "absent",
}  # fmt: skip


def write_npz(path: Path, members: Mapping[str, bytes], zeros: int = 0) -> None:
    """A zip with ``members``, each followed by ``zeros`` compressed zero bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(content)
                for start in range(0, zeros, 2**24):
                    file.write(bytes(min(2**24, zeros - start)))


def npy(shape: str, dtype: str = "'<f8'", content: bytes = b"", fields: str = "'fortran_order': False") -> bytes:
    """An .npy file whose header claims a shape and a dtype."""
    header = f"{{'descr': {dtype}, {fields}, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content

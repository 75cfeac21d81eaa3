"""Files from others, read within limits: plain JSON and YAML of a stated structure.

A folder of a run, a network or a pipeline may come from anybody. Nothing here runs what a file names, waits for a pipe,
reads a device, or takes more memory than a small multiple of the file's limit.
"""

import math
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.lib import format as npy
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from torch import Tensor

T = TypeVar("T")

#: An archive may unpack to this many bytes, or to this many times its own size.
_UNPACKED, _RATIO = 2**28, 20

#: Bytes of a JSON file. The longest is of a checkpoint: a few numbers for each parameter of a network.
JSON_LIMIT = 2**23
#: Bytes of a YAML file, whose parser takes about ten seconds for a megabyte.
YAML_LIMIT = 2**18


def read_json(path: str | Path, kind: type[T], limit: int = JSON_LIMIT) -> T:
    """The content of a JSON file, checked to be of a ``kind``.

    Args:
        path: the file.
        kind: the structure, such as ``dict[str, Any]`` or a dataclass with annotations of :mod:`onestep.ranges`. Types
            are strict: no text stands for a number, no boolean for an integer. Unknown keys of a dataclass are ignored.
        limit: bytes of the file.

    Raises:
        ValueError: with the file, if it is no JSON, or of another structure; see :func:`read_bytes`.
    """
    return parse_json(read_bytes(path, limit), kind, path)


def parse_json(text: str | bytes, kind: type[T], name: str | Path) -> T:
    """Like :func:`read_json`, of ``text`` from the file ``name``."""
    content = text.encode() if isinstance(text, str) else text.removeprefix(b"\xef\xbb\xbf")
    try:
        from_json(content, allow_inf_nan=False)  # also where the kind leaves values open
    except ValueError as error:  # also too deep, or not UTF-8
        raise ValueError(f"{name}: no JSON: {error}") from error
    adapter = _adapter(kind)  # type: ignore[arg-type] # a type is hashable
    try:
        return adapter.validate_json(content, strict=True)
    except ValidationError as error:
        raise ValueError(f"{name}: {first_error(error)}") from error


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        ValueError: with the file, if it is absent, damaged, or holds a number that is not finite.
    """
    with open_tensors(path) as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} is not finite: take an earlier checkpoint, or another file")
    return tensors


@contextmanager
def open_tensors(path: str | Path) -> Iterator[Any]:
    """Context with an open safetensors file.

    Raises:
        ValueError: with the file, also for what is raised within the context, if it is absent or damaged.
    """
    check_file(path)
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: no safetensors, or a damaged file: {one_line(error, 500)}") from error


def read_arrays(path: str | Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Those of the arrays ``names`` that an .npz holds. Nothing is unpickled.

    Raises:
        ValueError: with the file, if it is absent or damaged, holds none of them, or would unpack to far more than its
            own size.
    """
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            present = [name.removesuffix(".npy") for name in archive.namelist()]
            found = [name for name in names if name in present]
            if not found:
                raise ValueError(f"its arrays are {', '.join(present)[:200]}, expected {' or '.join(names)}")
            allowed = max(_UNPACKED, _RATIO * Path(path).stat().st_size)
            if (size := sum(archive.getinfo(f"{name}.npy").file_size for name in found)) > allowed:
                raise ValueError(f"it unpacks to {size / 1e9:,.1f} GB, far more than its own size")
            return {name: _read_array(archive, f"{name}.npy") for name in found}
    except Exception as error:  # a damaged archive raises many types
        raise ValueError(f"{path}: no .npz of {' or '.join(names)}: {one_line(error, 300)}") from error


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of numbers; its size is checked before any memory is asked for."""
    with archive.open(name) as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} has the format {version}")
        shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
        if dtype.kind not in "biufU" or min(shape, default=0) < 0:
            raise ValueError(f"{name} holds {dtype}, expected numbers")
        if file.tell() + math.prod(shape) * dtype.itemsize != archive.getinfo(name).file_size:
            raise ValueError(f"{name} is cut, or its header is not its own")
    with archive.open(name) as file:
        return npy.read_array(file, allow_pickle=False)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file: plain values, without tags and aliases.

    Raises:
        ValueError: with the file, if it is anything else; see :func:`read_bytes`.
    """
    content = read_bytes(path, YAML_LIMIT)
    try:
        values = yaml.load(content.decode(), _PlainLoader)
    except RecursionError as error:
        raise ValueError(f"{path}: no plain YAML: nested too deep") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that does not exist, no UTF-8
        raise ValueError(f"{path}: no plain YAML: {one_line(error, 300)}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path}: expected keys with values, got {type(values).__name__}")
    return values


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        ValueError: with the file, if it is larger, or see :func:`check_file`.
    """
    check_file(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > limit:
        raise ValueError(f"{path} has more than {limit:,} bytes: no file of this kind is so long")
    return content


def check_file(path: str | Path) -> None:
    """Check that ``path`` is a regular file, or a link to one: a pipe or a device can be read without end.

    Raises:
        ValueError: if it is anything else, or absent.
    """
    path = Path(path)
    try:
        regular, exists = path.is_file(), path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or has a null byte; links in a circle
        raise ValueError(f"{path} cannot be read: {one_line(error, 500)}") from error
    if not exists:
        raise ValueError(f"{path}: no such file")
    if not regular:
        raise ValueError(f"{path}: expected a file, not a folder, a pipe or a device")


def one_line(value: object, longest: int = 80) -> str:
    """A value from a file, or another library's message, as one line of a message."""
    text = " ".join(str(value).split())
    return text if len(text) <= longest else f"{text[:longest]}..."


def first_error(error: ValidationError) -> str:
    """The first of pydantic's errors in one line: the key, the value and what was expected."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"])) or "the content"
    if first["type"] == "missing":
        return f"{key} is missing"
    return f"{one_line(key)}={one_line(repr(first['input']))}: {first['msg'].replace('Input should be', 'expected')}"


class _PlainLoader(yaml.SafeLoader):
    """A safe loader without tags, and without aliases, by which a short file can stand for more than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            kind = f"the alias *{event.anchor}" if isinstance(event, yaml.AliasEvent) else f"the tag {event.tag}"
            raise yaml.composer.ComposerError(None, None, f"{kind} is not allowed", event.start_mark)
        return super().compose_node(parent, index)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)

"""Readers of EDM's checkpoint files: pickles with tensors in torch's format, and plain torch files.

No code in them is run, see :mod:`onestep.models.edm.safe_unpickler`. The names below are all names of the format.
"""

import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from onestep.models.describe import describe, is_safetensors
from onestep.models.edm.safe_unpickler import Name, Names, PickleMachine, Recorded, short
from onestep.reading import one_line

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_NUMPY_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_MAX_DIMENSIONS = 8  # of a tensor; those of networks have up to 4
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # at the start of files of torch.save before version 1.6
_TORCH_PROTOCOL = 1001


@dataclass
class Storage:
    """A flat array. Its bytes may follow later in the file than the tensors that are views of it."""

    dtype: torch.dtype
    size: int
    content: bytearray | None = None

    @property
    def byte_count(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize

    def fill(self, content: bytes) -> None:
        """Set the bytes.

        Raises:
            ValueError: if ``content`` has another size.
        """
        if len(content) != self.byte_count:
            raise ValueError(f"a storage has {len(content)} bytes where {self.byte_count} were expected")
        self.content = bytearray(content)


@dataclass(frozen=True)
class RecordedTensor:
    """A view of a storage, with offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """The tensor, on the CPU.

        Raises:
            ValueError: if it extends beyond its storage.
        """
        count = prod(self.shape)
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        if self.storage.content is None or count > self.storage.size or (count and last >= self.storage.size):
            raise ValueError(
                f"a tensor of shape {self.shape} reaches beyond its storage of {self.storage.size} numbers"
            )
        if count == 0:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        numbers = torch.frombuffer(self.storage.content, dtype=self.storage.dtype)
        # The stride of a dimension of size 1 is not used, and may have any value.
        stride = [step if size > 1 else 1 for size, step in zip(self.shape, self.stride, strict=True)]
        return numbers.as_strided(self.shape, stride, self.offset)


class _NumpyDtype(Recorded):
    """A numpy dtype by its code, such as "f8"; its state must be little-endian."""

    def set_state(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|"):
            raise ValueError("it has numpy numbers that are not little-endian")


class _Array(Recorded):
    """A numpy array, whose values are not read."""

    def __init__(self) -> None:
        super().__init__("ndarray")

    def set_state(self, state: Any) -> None:
        if type(state) is not tuple:
            raise ValueError(f"a numpy array has the state {short(state)}")


def _persistent_object(meta: Any) -> Recorded:
    """An object of EDM's persistence. The source code in it is not read."""
    is_class = type(meta) is dict and meta.get("type") == "class" and type(meta.get("class_name")) is str
    if not is_class or type(meta.get("state")) is not dict:
        raise ValueError("an object of EDM's persistence lacks its class_name or its state")
    return Recorded(meta["class_name"], meta["state"])


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> RecordedTensor:
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(stride) is not tuple:
        raise ValueError("a tensor is described by something else than a storage, a shape and strides")
    if (
        len(shape) != len(stride)
        or len(shape) > _MAX_DIMENSIONS
        or not all(type(n) is int and n >= 0 for n in (offset, *shape, *stride))
    ):
        raise ValueError("a tensor's shape or strides are no lengths")
    return RecordedTensor(storage, offset, shape, stride)


def _parameter(tensor: Any, *_: Any) -> RecordedTensor:
    if not isinstance(tensor, RecordedTensor):
        raise ValueError(f"a parameter is made of {short(tensor)}")
    return tensor


class _Copies:
    """Copies from the file, with a total size of at most the file's, even if it refers to the same data repeatedly."""

    def __init__(self, file_size: int) -> None:
        self.storages_left = self.texts_left = file_size

    def storage_of_blob(self, blob: Any) -> Storage:
        """The storage in a nested torch file."""
        if type(blob) is not bytes:
            raise ValueError(f"a storage is made of {short(blob)}")
        self.storages_left -= len(blob)
        if self.storages_left < 0:
            raise ValueError("its storages are larger than the file")
        storage = _read_legacy(BytesIO(blob), _STORAGE_NAMES)
        if not isinstance(storage, Storage):
            raise ValueError(f"a storage's bytes hold {short(storage)}")
        return storage

    def bytes_of_text(self, text: Any, encoding: Any) -> bytes:
        """Bytes in the encoding of protocols before 3."""
        if type(text) is not str or encoding != "latin1":
            raise ValueError(f"its bytes are spelt as {short(text)} in {short(encoding)}")
        self.texts_left -= len(text)
        if self.texts_left < 0:
            raise ValueError("its bytes are more than those of the file")
        return text.encode("latin1")


def _numpy_dtype(code: Any, *_: Any) -> _NumpyDtype:
    if code not in _NUMPY_DTYPES:
        raise ValueError(f"numpy's dtype {short(code)} is none of a number: refused")
    return _NumpyDtype(code)


def _numpy_scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, _NumpyDtype) or type(content) is not bytes:
        raise ValueError("a numpy number is described by something else than its dtype and bytes")
    return np.frombuffer(content, f"<{dtype.class_name}", count=1).item()


_STORAGE_NAMES: Names = {("torch", name): None for name in _DTYPES}
_NAMES: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
    ("collections", "OrderedDict"): lambda: {},
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.nn.modules.container", "ModuleDict"): lambda: Recorded("ModuleDict"),
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,  # before numpy 2
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
    ("numpy", "dtype"): _numpy_dtype,
    ("dnnlib.util", "EasyDict"): lambda: {},  # of EDM2
    # Arrays of EDM2's scaling of latents, which is this package's too.
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): None,
    # Sets in the encoding of protocols before 4; no set of the format is needed.
    ("builtins", "set"): lambda _: Recorded("set"),
    ("__builtin__", "set"): lambda _: Recorded("set"),
    **_STORAGE_NAMES,
}


def _names(file_size: int) -> Names:
    copies = _Copies(file_size)
    return _NAMES | {
        ("torch.storage", "_load_from_bytes"): copies.storage_of_blob,
        ("_codecs", "encode"): copies.bytes_of_text,
    }


def _storage_by_id(storages: dict[str, Storage]) -> Callable[[Any], Storage]:
    """A function from a torch file's persistent id to its storage in ``storages``, created without bytes if absent."""

    def find(persistent_id: Any) -> Storage:
        match persistent_id:
            case ("storage", Name(module="torch", name=kind), str(key), str(), int(size), *view) if (
                kind in _DTYPES and size >= 0 and view in ([], [None])
            ):
                return storages.setdefault(key, Storage(_DTYPES[kind], size))
        raise ValueError("its persistent id is none of a storage: refused")

    return find


def _read_legacy(file: BinaryIO, names: Names) -> Any:
    """The object in a file of torch.save before version 1.6, the format of a single storage to this day."""
    storages: dict[str, Storage] = {}
    header = [PickleMachine({}).read(file) for _ in range(3)]
    if header[:2] != [_TORCH_MAGIC, _TORCH_PROTOCOL] or type(header[2]) is not dict:
        raise ValueError("it is no torch file of the format before version 1.6")
    if header[2].get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine")
    content = PickleMachine(names, _storage_by_id(storages)).read(file)
    keys = PickleMachine({}).read(file)
    if type(keys) is not list or not all(type(key) is str for key in keys) or set(keys) != set(storages):
        raise ValueError("its storages are not those that its tensors refer to")
    for key in keys:
        storage = storages[key]
        if int.from_bytes(file.read(8), "little") != storage.size:
            raise ValueError("a storage is cut off, or has another size than its tensors say")
        storage.fill(file.read(storage.byte_count))
    return content


def _read_zip(file: BinaryIO, names: Names) -> Any:
    """The object in a file of torch.save since version 1.6: a zip of a pickle and a member for each storage."""
    storages: dict[str, Storage] = {}
    with zipfile.ZipFile(file) as archive:
        roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1 or any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is a zip archive, but not of a torch file")
        if f"{roots[0]}/byteorder" in archive.namelist() and archive.read(f"{roots[0]}/byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        machine = PickleMachine(names, _storage_by_id(storages))
        content = machine.read(BytesIO(archive.read(f"{roots[0]}/data.pkl")))
        # Overlapping members could fill the memory from a small file.
        if sum(storage.byte_count for storage in storages.values()) > file.seek(0, os.SEEK_END):
            raise ValueError("its storages are larger than the file")
        for key, storage in storages.items():
            storage.fill(archive.read(f"{roots[0]}/data/{key}"))
    return content


class _SizedFile(io.BufferedReader):
    """An open file whose reads ask for no more than it has: memory is allocated for what is asked for."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = os.path.getsize(path)

    def read(self, size: int | None = -1, /) -> bytes:
        left = self.size - self.tell()
        return super().read(left if size is None or size < 0 else min(size, left))


def read_checkpoint(path: str | Path) -> Any:
    """The object in a file, as plain data, :class:`Recorded` objects and :class:`RecordedTensor`.

    Args:
        path: a pickle of EDM or its descendants, or a file of torch.save in either format.

    Raises:
        ValueError: if the file is absent or damaged, or contains anything that is not part of the format.
    """
    if Path(path).is_dir() or is_safetensors(Path(path)):
        raise ValueError(f"{path} is no file of EDM's format: {describe(Path(path))}")
    try:
        with _SizedFile(path) as file:
            start, names = file.read(4), _names(file.size)
            file.seek(0)
            if start.startswith(b"PK"):
                return _read_zip(file, names)
            if start == b"\x80\x02\x8a\x0a":  # the magic number as a pickle
                return _read_legacy(file, names)
            return PickleMachine(names).read(file)
    except (OSError, ValueError, LookupError, EOFError, RuntimeError, OverflowError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {one_line(error, 400)}") from error  # pickletools quotes the file

"""Tensors that are computed once and kept on disk, in chunks, so that what was interrupted goes on where it stopped.

A chunk is a safetensors file with its checksum, written beside and renamed when complete. The folder's name is a hash
of all that the tensors depend on, see :func:`fingerprint`.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm


class ChunkCache:
    """The folder ``folder/key`` of chunks, each some named tensors.

    Args:
        folder: where folders of all keys lie; it may start with ~.
        key: the hash of what the tensors depend on.
        what: what they are, for messages.
        setting: the name of the setting that chooses ``folder``, for messages.

    Raises:
        ValueError: if the folder cannot be made, or later written to.
    """

    def __init__(self, folder: str, key: str, what: str, setting: str) -> None:
        self.folder = Path(folder).expanduser() / key
        self.what, self.setting = what, setting
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, chunk: str) -> Path:
        """Where a chunk lies."""
        return self.folder / f"{chunk}.safetensors"

    def write(self, chunk: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep ``tensors`` as ``chunk``."""
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        beside = self.folder / f".writing_{os.getpid()}_{self.path(chunk).name}"  # another run may write the same chunk
        with self._writing():
            save_file(whole, beside, metadata={"sha256": _checksum_of_all(whole)})
            os.replace(beside, self.path(chunk))

    def read(self, chunk: str) -> dict[str, Tensor] | None:
        """A chunk's tensors, None where there are none or, with a notice, where the file is damaged."""
        path = self.path(chunk)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                whole = (file.metadata() or {}).get("sha256") == _checksum_of_all(tensors)
        except (OSError, SafetensorError):
            whole = False
        if not whole:
            print(f"{path} is damaged or cannot be read: making its {self.what} again", flush=True)
            return None
        return tensors

    def holds(self, chunk: str) -> bool:
        """Whether a chunk is there in its full length; unlike :meth:`read`, without reading it."""
        try:
            with safe_open(self.path(chunk), "pt") as file:
                return "sha256" in (file.metadata() or {})
        except (OSError, SafetensorError):
            return False

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"the {self.what} cannot be written to {self.folder} ({error}): make room there, or choose another "
                f"folder by {self.setting}=..."
            ) from error


class CachedRows:
    """Rows of named tensors in the chunks of a ``cache``, read from the disk when they are asked for.

    Args:
        cache: where they lie.
        names: of the chunks, in order; each a hash of what its rows are computed from.
        rows: rows in a chunk, the last may have fewer.
    """

    def __init__(self, cache: ChunkCache, names: Sequence[str], rows: int) -> None:
        self.cache, self.names, self.rows = cache, names, rows

    def fill(self, compute: Callable[[int], Mapping[str, Tensor]], progress: str) -> None:
        """Have the chunks that are missing computed, each by its position, shared among the processes.

        ``progress`` is the progress bar's title.
        """
        state = PartialState()
        missing = [chunk for chunk, name in enumerate(self.names) if not self.cache.holds(name)]
        state.wait_for_everyone()  # all have looked before any writes, so that all see the same ones missing
        own = missing[state.process_index :: state.num_processes]
        silent = not own or not state.is_main_process
        for chunk in tqdm(own, desc=progress, unit="chunk", disable=silent, leave=False):
            self.cache.write(self.names[chunk], compute(chunk))
        state.wait_for_everyone()
        for chunk in missing:  # the other processes' too, which may be on a machine with a cache of its own
            if not self.cache.holds(self.names[chunk]):
                self.cache.write(self.names[chunk], compute(chunk))

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The rows [len(indices), ...] under each name."""
        found: list[dict[str, Tensor]] = []
        for index in indices:
            chunk, row = divmod(index, self.rows)
            with safe_open(self.cache.path(self.names[chunk]), "pt") as file:
                found.append({name: file.get_slice(name)[row] for name in file.keys()})  # noqa: SIM118
        return {name: torch.stack([tensors[name] for tensors in found]) for name in found[0]}


def fingerprint(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None, files: Iterable[Path] = ()
) -> str:
    """A hash of plain values, of a network's ``tensors``, and of the content of ``files``: 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, value in sorted((tensors or {}).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} {_checksum(value)}".encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:16]


def _checksum_of_all(tensors: Mapping[str, Tensor]) -> str:
    lines = "".join(f"{name} {_checksum(tensors[name])}" for name in sorted(tensors))
    return hashlib.sha256(lines.encode()).hexdigest()


def _checksum(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()

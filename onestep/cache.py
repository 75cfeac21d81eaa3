"""Tensors that are computed once and kept on disk, in chunks: an interrupted computation goes on where it stopped.

A chunk is a safetensors file with its checksum, complete or absent. The folder's name is a hash of all that the tensors
depend on, see :func:`fingerprint`.
"""

import json
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

from onestep.files import atomic_file, hash_file, hash_parts, hash_tensors


class ChunkCache:
    """The folder ``folder/key`` of chunks, each some named tensors.

    Args:
        folder: the parent of the folders of all keys; it may start with ~.
        key: the hash of all that the tensors depend on.
        what: a name of the tensors, for messages.
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
        """The file of a chunk."""
        return self.folder / f"{chunk}.safetensors"

    def write(self, chunk: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep ``tensors`` as ``chunk``."""
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with self._writing(), atomic_file(self.path(chunk)) as temporary:
            save_file(contiguous, temporary, metadata={"sha256": hash_tensors(contiguous)})

    def read(self, chunk: str) -> dict[str, Tensor] | None:
        """A chunk's tensors, None where there are none or, with a notice, where the file is damaged."""
        path = self.path(chunk)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                intact = (file.metadata() or {}).get("sha256") == hash_tensors(tensors)
        except (OSError, SafetensorError):
            intact = False
        if not intact:
            print(f"{path} is damaged or cannot be read: making its {self.what} again", flush=True)
            return None
        return tensors

    def holds(self, chunk: str) -> bool:
        """Whether there is a chunk of full length; its checksum is verified by :meth:`read` alone."""
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
        cache: the cache of the chunks.
        names: of the chunks, in order; each a hash of what its rows are computed from.
        rows: rows in a chunk, the last may have fewer.
    """

    def __init__(self, cache: ChunkCache, names: Sequence[str], rows: int) -> None:
        self.cache, self.names, self.rows = cache, names, rows

    def fill(self, compute: Callable[[int], Mapping[str, Tensor]], progress: str) -> None:
        """Have the chunks that are missing computed, each by its position, divided among the processes.

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
    of_files = (f"{path.name} {hash_file(path)}" for path in files)
    return hash_parts([json.dumps(description, sort_keys=True), hash_tensors(tensors or {}), *of_files])[:16]

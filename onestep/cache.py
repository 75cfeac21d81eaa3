"""A cache of computed tensors on disk, in chunks: an interrupted computation resumes at the missing chunks.

A chunk is a safetensors file with a checksum, complete or absent. The folder's name is a hash of everything that the
tensors depend on, see :func:`fingerprint`.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from onestep.files import atomic_file, hash_file, hash_parts, hash_tensors
from onestep.folders import is_cache_folder, process_folder
from onestep.reading import open_tensors


class ChunkCache:
    """Chunks of named tensors in the folder ``folder/key``.

    If the folder is the package's own and cannot be written, new chunks are kept until the process ends, with a printed
    notice.

    Args:
        folder: the parent of the folders of all keys; it may start with ~.
        key: the hash of everything that the tensors depend on.
        title: a name of the tensors, for messages.
        setting: the name of the setting for ``folder``, for messages.

    Raises:
        ValueError: if a folder that the user chose cannot be made or written.
    """

    def __init__(self, folder: str, key: str, title: str, setting: str) -> None:
        self.title, self.setting, self.is_default = title, setting, is_cache_folder(folder)
        self.folder = Path(os.path.expanduser(folder)) / key
        self._unkept: Path | None = None  # the folder of new chunks if this one cannot be written
        try:
            if not self.folder.is_absolute() and folder.startswith("~"):
                raise OSError(f"no home folder is known for {folder}")
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._give_up(error)

    def path(self, chunk: str) -> Path:
        """The file of a chunk."""
        name = f"{chunk}.safetensors"
        if self._unkept is not None and (self._unkept / name).is_file():
            return self._unkept / name
        return self.folder / name

    def write(self, chunk: str, tensors: Mapping[str, Tensor]) -> None:
        """Write ``tensors`` as ``chunk``.

        Raises:
            ValueError: for non-finite values, which would be read again in every run; or if it cannot be written.
        """
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        for name, tensor in contiguous.items():
            if not tensor.isfinite().all():
                raise ValueError(
                    f"the {self.title} have non-finite values ({name}): check the weights that compute them, and their "
                    "inputs; float16 overflows where bfloat16 and float32 do not"
                )
        try:
            self._write(self._unkept or self.folder, chunk, contiguous)
        except (OSError, SafetensorError) as error:
            self._write(self._give_up(error), chunk, contiguous)

    @staticmethod
    def _write(folder: Path, chunk: str, tensors: Mapping[str, Tensor]) -> None:
        with atomic_file(folder / f"{chunk}.safetensors") as temporary:
            save_file(dict(tensors), temporary, metadata={"sha256": hash_tensors(tensors)})

    def read(self, chunk: str) -> dict[str, Tensor] | None:
        """A chunk's tensors; None if it is missing or, with a printed notice, damaged."""
        path = self.path(chunk)
        if not path.is_file():
            return None
        try:
            with open_tensors(path) as file:
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                intact = (file.metadata() or {}).get("sha256") == hash_tensors(tensors)
        except ValueError:
            intact = False
        if not intact:
            print(f"{path} is damaged or cannot be read: its {self.title} are computed again", flush=True)
            return None
        return tensors

    def holds(self, chunk: str) -> bool:
        """True if there is a chunk of full length; only :meth:`read` verifies the checksum."""
        try:
            with open_tensors(self.path(chunk)) as file:
                return "sha256" in (file.metadata() or {})
        except ValueError:
            return False

    def _give_up(self, error: Exception) -> Path:
        """The folder of new chunks after the ``error`` of writing to this one.

        Raises:
            ValueError: if the user chose this folder, or the folder of the process cannot be written either.
        """
        message = f"the {self.title} cannot be written to {self.folder} ({error})"
        mend = f"choose another folder with {self.setting}=..."
        if not self.is_default or self._unkept is not None:
            raise ValueError(f"{message}: free disk space, or {mend}") from error
        self._unkept = process_folder() / self.folder.name
        if PartialState().is_local_main_process:
            print(f"{message}: they are computed for this run alone; to keep them, {mend}", flush=True)
        return self._unkept


class CachedRows:
    """Rows of named tensors in the chunks of a ``cache``, read from the disk on access.

    Args:
        cache: the cache of the chunks.
        names: the chunks' names, in order; each a hash of the inputs of its rows.
        rows: rows per chunk; the last chunk may have fewer.
    """

    def __init__(self, cache: ChunkCache, names: Sequence[str], rows: int) -> None:
        self.cache, self.names, self.rows = cache, names, rows

    def fill(self, compute: Callable[[int], Mapping[str, Tensor]], progress: str) -> None:
        """Verify the present chunks and compute the others, divided among the processes.

        Args:
            compute: a chunk's tensors by its position.
            progress: title of the progress bar.
        """
        state = PartialState()
        assigned = range(len(self.names))[state.process_index :: state.num_processes]
        missing = [chunk for chunk in assigned if self.cache.read(self.names[chunk]) is None]
        silent = not missing or not state.is_main_process
        for chunk in tqdm(missing, desc=progress, unit="chunk", disable=silent, leave=False):
            self.cache.write(self.names[chunk], compute(chunk))
        state.wait_for_everyone()
        for chunk, name in enumerate(self.names):  # of other processes, which may be on machines with separate caches
            if chunk not in assigned and not self.cache.holds(name):
                self.cache.write(name, compute(chunk))

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The rows [len(indices), ...] by name."""
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

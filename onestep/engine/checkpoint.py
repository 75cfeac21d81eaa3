"""Checkpoints on disk: folders of safetensors and JSON that are complete or absent.

A checkpoint is written into a temporary folder, synced and then renamed. ``manifest.json`` holds the size and the
SHA-256 of each file, to detect damage before any of it is loaded. Nothing is unpickled. Folders whose names begin with
a dot are not checkpoints: they are incomplete, or abandoned by a rollback.

Other names in the folder of the checkpoints are the user's, such as those of copies: they are neither read, renamed nor
deleted.
"""

import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from onestep.files import atomic_folder, hash_file, sync, to_json
from onestep.metrics.result import Measurement
from onestep.reading import read_json

_FOLDER = "checkpoints"
_MANIFEST = "manifest.json"
_NAME = re.compile(r"iteration_([0-9]{8,})(?:_([0-9]+))?")
_LITTER = re.compile(rf"\.(abandoned|writing_.+)_{_NAME.pattern}")
_SPARE_BYTES = 2**20  # for the JSON files and the file system's metadata


@dataclass(frozen=True)
class _File:
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    """The content of ``manifest.json``; ``name`` is the folder's."""

    name: str
    measured: list[Measurement]
    files: dict[str, _File]


@dataclass(frozen=True)
class Snapshot:
    """The state of a run after ``iteration``, in memory.

    Args:
        tensors: by file name, without suffix, and key.
        values: plain values by file name, without suffix.
        measured: the values that pick the best checkpoints; empty if nothing was measured at this iteration.
    """

    iteration: int
    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any]
    measured: Sequence[Measurement] = ()

    @property
    def size(self) -> int:
        """The size of its tensors in bytes."""
        return sum(tensor.nbytes for tensors in self.tensors.values() for tensor in tensors.values())


def write_checkpoint(run: Path, snapshot: Snapshot, keep_last: int) -> Path:
    """Write ``run/checkpoints/iteration_NNNNNNNN``, then delete all but the newest ``keep_last`` and the best.

    Older checkpoints are deleted only when the new one is complete. If one of the same iteration exists, the new name
    ends in a number, and the old folder is deleted afterwards.

    Raises:
        ValueError: if the disk is full or fails; earlier checkpoints are unchanged then.
    """
    parent = run / _FOLDER
    target = _free_path(parent, snapshot.iteration)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for path in _folders(parent, _LITTER):  # of a killed process, or set aside
            shutil.rmtree(path)
        _require_room(parent, snapshot.size)
        with atomic_folder(target, durable=True) as folder:
            _write_files(folder, snapshot)
        for folder in (run, run.parent):  # they may be new
            sync(folder)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"the checkpoint of iteration {snapshot.iteration} could not be written to {parent} ({error}). "
            "Earlier checkpoints are intact: free disk space and continue with resume=auto"
        ) from error
    _prune(run, target, keep_last)
    return target


def _free_path(parent: Path, iteration: int) -> Path:
    name = f"iteration_{iteration:08d}"
    names = (name, *(f"{name}_{number}" for number in range(2, 100)))
    return next(path for path in map(parent.joinpath, names) if not os.path.lexists(path))


class CheckpointWriter:
    """Writes the checkpoints of a run one after another in a thread."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def write(self, snapshot: Snapshot, keep_last: int) -> None:
        """Wait for the previous checkpoint and start :func:`write_checkpoint`."""
        self.wait()
        self._writing = self._thread.submit(write_checkpoint, self.run, snapshot, keep_last)

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint is complete; raises the error if it could not be written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None


def _require_room(parent: Path, size: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < size + _SPARE_BYTES:
        raise OSError(f"it needs {size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free")


def _write_files(folder: Path, snapshot: Snapshot) -> None:
    for name, tensors in snapshot.tensors.items():
        save_file(tensors, folder / f"{name}.safetensors")
    for name, values in snapshot.values.items():
        (folder / f"{name}.json").write_text(to_json(values), encoding="utf-8")
    files = {path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)} for path in sorted(folder.iterdir())}
    measured = [asdict(value) for value in snapshot.measured]
    manifest = {"name": folder.name, "measured": measured, "files": files}
    (folder / _MANIFEST).write_text(to_json(manifest, indent=1), encoding="utf-8")


def _prune(run: Path, written: Path, keep_last: int) -> None:
    found = _list(run)
    keep = {*list(found)[-keep_last:], *(path for path, _ in _best_of_each(found).values())}
    for path in found:
        if path != written and (path not in keep or iteration_of(path) == iteration_of(written)):
            shutil.rmtree(path)


def best_values(run: Path) -> dict[str, Measurement]:
    """The best value of each key among the run's checkpoints."""
    return {key: measured for key, (_, measured) in _best_of_each(_list(run)).items()}


def best_checkpoint(run: Path, key: str) -> tuple[Path, int] | None:
    """The intact checkpoint with the best value of ``key``, the first of equals, and its iteration."""
    measured = {path: manifest for path, manifest in _list(run).items() if manifest is not None and manifest.measured}
    best = _best_of_each({path: manifest for path, manifest in measured.items() if damage(path) is None}).get(key)
    return None if best is None else (best[0], iteration_of(best[0]))


def _best_of_each(found: Mapping[Path, _Manifest | None]) -> dict[str, tuple[Path, Measurement]]:
    """The best checkpoint by key: of each average, also after resumption with another evaluation.best."""
    best: dict[str, tuple[Path, Measurement]] = {}
    for path, manifest in found.items():
        for measured in () if manifest is None else manifest.measured:
            if measured.key not in best or measured.is_better_than(best[measured.key][1]):
                best[measured.key] = path, measured
    return best


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run's folder, oldest first, damaged ones included; see :func:`damage`."""
    return list(_list(run))


def _list(run: Path) -> dict[Path, _Manifest | None]:
    """The checkpoints of :func:`list_checkpoints` with their manifests; None for a damaged one.

    A folder with the manifest of another is a copy, and the user's.
    """
    found = sorted(_folders(run / _FOLDER, _NAME), key=lambda path: [int(part) for part in path.name.split("_")[1:]])
    manifests = {path: _manifest_of(path) for path in found}
    return {path: manifest for path, manifest in manifests.items() if manifest is None or manifest.name == path.name}


def _manifest_of(folder: Path) -> _Manifest | None:
    try:
        return read_json(folder / _MANIFEST, _Manifest)
    except ValueError:
        return None


def _folders(parent: Path, names: re.Pattern[str]) -> list[Path]:
    """The folders, not links to folders, with ``names`` in ``parent``."""
    try:
        with os.scandir(parent) as entries:
            return [Path(entry.path) for entry in entries
                    if names.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]  # fmt: skip
    except (FileNotFoundError, NotADirectoryError):
        return []


def iteration_of(folder: Path) -> int:
    """The iteration of a checkpoint, by its name."""
    return int(folder.name.split("_")[1])


def damage(folder: Path) -> str | None:
    """A description of the first damaged file of a checkpoint; None if the checkpoint is intact."""
    try:
        for name, expected in read_json(folder / _MANIFEST, _Manifest).files.items():
            path = folder / name
            if path.parent != folder:
                return f"{_MANIFEST} names {name!r}, which is outside the checkpoint"
            if not path.is_file():
                return f"{name} is absent, or is no file"
            if (size := path.stat().st_size) != expected.bytes:
                return f"{name} has {size} bytes instead of {expected.bytes}"
            if hash_file(path) != expected.sha256:
                return f"{name} has changed: its SHA-256 differs from the manifest's"
    except OSError as error:
        return f"{Path(str(error.filename)).name} cannot be read: {error.strerror}"
    except ValueError as error:
        return str(error)
    return None


def is_checkpoint(folder: Path) -> bool:
    """True if ``folder`` is a checkpoint, also a damaged one."""
    return (folder / _MANIFEST).is_file() or (folder / "state.json").is_file()


def find_checkpoint(resume: str | None, run: Path) -> Path | None:
    """The intact checkpoint that ``resume`` names; None for a fresh start.

    Args:
        resume: "auto" for the newest in this run's folder, if there is one; a run's folder for its newest; or a
            checkpoint's folder. None for a fresh start. Damaged ones are skipped with a warning in favour of older
            ones.
        run: this run's folder.

    Raises:
        ValueError: if the given path holds no checkpoint, or all its checkpoints are damaged.
    """
    if resume is None:
        return None
    path = run if resume == "auto" else Path(resume)
    if resume != "auto" and is_checkpoint(path):
        if reason := damage(path):
            raise ValueError(f"cannot resume from {path}: {reason}; choose another checkpoint, or resume=auto")
        return path
    found = list_checkpoints(path)
    others = sorted({entry.name for entry in (path / _FOLDER).glob("[!.]*")} - {folder.name for folder in found})
    if others:
        warnings.warn(f"{path / _FOLDER}: not written by a run and ignored: {', '.join(others[:3])}", stacklevel=2)
    for folder in reversed(found):
        if (reason := damage(folder)) is None:
            return folder
        warnings.warn(f"{folder} is damaged and skipped: {reason}", stacklevel=2)
    if found:
        raise ValueError(
            f"every checkpoint of {path} is damaged (the oldest: {reason}); choose another folder for a fresh start"
        )
    if resume == "auto":
        return None
    raise ValueError(f"resume={resume}: no checkpoint there; give a run's folder, a checkpoint's folder, or 'auto'")


def set_later_aside(run: Path, iteration: int) -> None:
    """Hide the checkpoints after ``iteration``, from which the run continues differently.

    The next :func:`write_checkpoint` deletes them.
    """
    for path in list_checkpoints(run):
        if iteration_of(path) > iteration:
            hidden = path.with_name(f".abandoned_{path.name}")
            shutil.rmtree(hidden, ignore_errors=True)
            os.replace(path, hidden)

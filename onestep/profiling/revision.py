"""Import of another git revision of the package into the same process, to compare it with the current code."""

import importlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import onestep
from onestep.profiling.subject import Subject

REPOSITORY = Path(onestep.__file__).parents[1]


def extract(revision: str, folder: Path) -> Path:
    """Write the package at a git ``revision`` to ``folder``, and return the folder.

    Raises:
        ValueError: if there is no such revision in this repository, or it has no profiling.
    """
    archive = subprocess.run(
        ["git", "-C", str(REPOSITORY), "archive", revision, "onestep"], capture_output=True, check=False
    )
    if archive.returncode:
        raise ValueError(f"revision {revision!r}: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    if not (folder / "onestep" / "profiling" / "subject.py").is_file():
        raise ValueError(f"revision {revision!r} has no onestep/profiling: choose a later one")
    return folder


def subject_of(sources: Path | None, network: str, overrides: Sequence[str], batch_size: int) -> Subject:
    """A subject built by the package in ``sources``; None for the current code.

    The subject keeps that package's modules. ``sys.modules`` is restored afterwards.
    """
    if sources is None:
        return Subject(network, overrides, batch_size)
    current = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "onestep"}
    sys.path.insert(0, str(sources))
    try:
        module = importlib.import_module("onestep.profiling.subject")
        subject: Subject = module.Subject(network, overrides, batch_size)
    finally:
        sys.path.remove(str(sources))
        for name in list(sys.modules):
            if name.split(".")[0] == "onestep":
                del sys.modules[name]
        sys.modules.update(current)
    return subject

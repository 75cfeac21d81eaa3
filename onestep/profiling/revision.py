"""Another revision of the package in the same process, to be measured beside this one."""

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
    """Put the package and the configuration of a git ``revision`` into ``folder``, which is returned.

    Raises:
        ValueError: if there is no such revision here, or it is older than this package.
    """
    archive = subprocess.run(
        ["git", "-C", str(REPOSITORY), "archive", revision, "onestep"], capture_output=True, check=False
    )
    if archive.returncode:
        raise ValueError(f"revision {revision!r}: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    if not (folder / "onestep" / "profiling" / "subject.py").is_file():
        raise ValueError(f"revision {revision!r} has no onestep/profiling: it is older than what would measure it")
    return folder


def subject_of(sources: Path | None, network: str, overrides: Sequence[str], batch_size: int) -> Subject:
    """A subject as the package in ``sources`` builds it; None for this one.

    Its modules are its own: those of this revision are put back when it is built.
    """
    if sources is None:
        return Subject(network, overrides, batch_size)
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "onestep"}
    sys.path.insert(0, str(sources))
    try:
        theirs = importlib.import_module("onestep.profiling.subject")
        subject: Subject = theirs.Subject(network, overrides, batch_size)
    finally:
        sys.path.remove(str(sources))
        for name in list(sys.modules):
            if name.split(".")[0] == "onestep":
                del sys.modules[name]
        sys.modules.update(ours)
    return subject

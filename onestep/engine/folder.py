"""The folder of a run: its claim by one run, its checkpoint to resume, its configuration and its records."""

import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from onestep.engine.checkpoint import find_checkpoint, list_checkpoints
from onestep.engine.course import Course, changes_since
from onestep.engine.settings import RunSettings
from onestep.files import to_json, write_text
from onestep.processes import from_main_process, rank_and_count

#: The file by which a run holds its folder; it names the process.
LOCK = ".lock"
_ANOTHER = "choose another folder with hydra.run.dir=... (output=... in Python)"
_held: set[int] = set()  # the descriptors of this process's locks


class RunFolder:
    """The folder of a run, which is the main process's for all processes; the main process reads and writes it.

    The processes must be started: each may have another time in the name of its own folder.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.path: Path = from_main_process(lambda: settings.output)
        self.settings = settings

    @contextmanager
    def claimed(self) -> Iterator[Path | None]:
        """Make the folder; a context in which no other run uses it, with the checkpoint to resume.

        Raises:
            ValueError: if another run uses the folder, or it cannot be written; for a missing checkpoint or one of
                another course, or a fresh start in a folder with another run's checkpoints.
        """
        with ExitStack() as held:

            def claim() -> Path | None:
                held.enter_context(locked(self.path))
                return self._find_checkpoint()

            yield from_main_process(claim)

    def _find_checkpoint(self) -> Path | None:
        """The checkpoint that ``settings.resume`` names; None for a fresh start."""
        found = find_checkpoint(self.settings.resume, self.path)
        if found is not None:
            changes_since(found, Course(self.settings.course))
        if found is None and list_checkpoints(self.path):
            raise ValueError(
                f"{self.path} holds the checkpoints of another run: continue it with resume=auto, or {_ANOTHER}"
            )
        return found

    def write_config(self) -> None:
        """Write the configuration into the folder."""
        if rank_and_count()[0] == 0:
            write_text(self.path / "config.yaml", self.settings.record)

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write ``values`` into the folder."""
        write_text(self.path / name, to_json(values, indent=2) + "\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make ``folder``; a context in which every other one for it fails, in any process.

    The lock is one of the system on a file in the folder, which is deleted at the end. If this process is killed, the
    file remains, but no lock. On a network file system the lock holds among hosts if its server keeps locks.

    Raises:
        ValueError: if it is locked, or cannot be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path)
    except OSError as error:
        raise ValueError(f"{folder}: the run cannot write its folder ({error.strerror}): {_ANOTHER}") from error
    _held.add(descriptor)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before the lock is released, so that nobody has locked this file
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(path: Path) -> int:
    """The descriptor of the locked file, which names this process."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 300).decode(errors="replace")
            os.close(descriptor)
            raise ValueError(
                f"{path.parent} is in use by another run ({holder or 'which is starting'}): wait for its end or stop "
                f"it, or {_ANOTHER}"
            ) from None
        except OSError as error:  # a file system without locks
            warnings.warn(
                f"{path} cannot be locked ({error.strerror}): start no other run in {path.parent}", stacklevel=2
            )
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        os.close(descriptor)  # its last holder deleted it before this process locked it


def _close_in_child() -> None:
    """Close the locks in a new child, such as a data loading process: it would hold them after this process's end."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_in_child)

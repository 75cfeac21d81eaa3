"""A run's folder: one run at a time, the main process's for all processes, and places that cannot be written."""

import errno
import fcntl
import json
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from omegaconf import DictConfig

from onestep.build.distillation import distill
from onestep.build.pretraining import pretrain, pretrain_features, pretrain_invertible
from onestep.build.run import started_run
from onestep.commands import main
from onestep.engine.folder import locked
from tests.helpers.configs import configure, refused, tiny_config, tiny_pretraining

IN_USE = "{folder} is in use by another run (process {pid} on {host}): wait for its end or stop it, or choose another "


def in_child(task: Callable[[], object]) -> int:
    """The id of a forked process that runs ``task`` and exits, with 0 unless it raises."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            task()
            code = 0
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_use(folder: Path, pid: int) -> str:
    return IN_USE.format(folder=folder, pid=pid, host=socket.gethostname())


@pytest.mark.parametrize("end", ["end", "failure", "kill"])
def test_a_locked_folder_is_refused_until_its_run_ends(end: str, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    begun, go, later = os.pipe(), os.pipe(), os.pipe()

    def hold() -> None:
        with locked(folder):
            if os.fork() == 0:  # a data loading process; it outlives this one and must not hold the lock
                os.read(later[0], 1)
                os._exit(0)
            os.write(begun[1], b".")
            os.read(go[0], 1)
            if end == "failure":
                raise ValueError

    holder = in_child(hold)
    os.read(begun[0], 1)
    with pytest.raises(ValueError) as caught, locked(folder):
        pass
    assert str(caught.value).startswith(in_use(folder, holder)) and "hydra.run.dir=..." in str(caught.value)
    assert "\n" not in str(caught.value)
    if end == "kill":
        os.kill(holder, signal.SIGKILL)
    else:
        os.write(go[1], b".")
    assert exit_code(holder) == {"end": 0, "failure": 1, "kill": -signal.SIGKILL}[end]
    with locked(folder):
        with pytest.raises(ValueError, match=f"process {os.getpid()}"), locked(folder):  # nor twice in one process
            pass
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert list(folder.iterdir()) == []
    os.write(later[1], b".")


TASKS: dict[str, tuple[Callable[[DictConfig], object], Callable[[Path], DictConfig]]] = {
    "train": (distill, lambda folder: tiny_config(folder, "resume=auto")),
    "pretrain": (pretrain, tiny_pretraining),
    "pretrain features": (pretrain_features, lambda folder: configure("pretrain_features", f"output={folder}")),
    "pretrain invertible": (
        pretrain_invertible,
        lambda folder: configure("pretrain_invertible", "data=digits", f"output={folder}"),
    ),
}


@pytest.mark.parametrize("command", TASKS)
def test_every_command_refuses_a_folder_in_use(command: str, tmp_path: Path) -> None:
    task, config = TASKS[command]
    with locked(tmp_path):
        assert refused(config(tmp_path), task).startswith(in_use(tmp_path, os.getpid()))


@pytest.mark.parametrize("place", ["/proc/x", "file", "file/run", "link"])
def test_a_folder_that_cannot_be_written(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / ".lock").symlink_to(tmp_path / "file")  # a lock that would write elsewhere
    message = r"cannot write its folder \(.+\): choose another folder with hydra.run.dir"
    with pytest.raises(ValueError, match=message), locked(tmp_path / place):
        pass
    assert (tmp_path / "file").read_text() == "precious"


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    message = r"cannot be locked \(Operation not supported\): start no other run"
    with pytest.warns(UserWarning, match=message), locked(tmp_path):
        pass


def test_a_lock_that_its_holder_deletes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of one run between the opening and the locking of the file by another one: it locks a new file."""
    flock = fcntl.flock
    calls: list[int] = []

    def flock_after_an_end(descriptor: int, operation: int) -> None:
        if not calls:
            (tmp_path / ".lock").unlink()
        calls.append(os.fstat(descriptor).st_ino)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_an_end)
    with locked(tmp_path):
        assert len(calls) == 2 and (tmp_path / ".lock").stat().st_ino == calls[1]
        with pytest.raises(ValueError, match="in use"), locked(tmp_path):
            pass


def test_each_run_has_its_own_precision(tmp_path: Path, accelerator: Accelerator) -> None:
    before = dict(AcceleratorState._shared_state)
    for precision in ("no", "bf16", "no"):
        with started_run(tiny_config(tmp_path, f"precision={precision}")) as run:
            assert run.accelerator.mixed_precision == precision
    with pytest.raises(ZeroDivisionError), started_run(tiny_config(tmp_path, "precision=bf16")):
        raise ZeroDivisionError
    assert dict(AcceleratorState._shared_state) == before and accelerator.mixed_precision == before["_mixed_precision"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("started", ["together", pytest.param("by_time", marks=pytest.mark.slow)])
def test_the_processes_share_a_folder(started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two real processes of the command without a folder, or with one that each names for itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.chdir(tmp_path)
    found = tmp_path / "found"
    found.mkdir()

    def report(config: DictConfig) -> None:
        with started_run(config) as run:
            run.write_config()
            run.accelerator.wait_for_everyone()
            (found / f"{run.accelerator.process_index}").write_text(json.dumps(str(run.folder)))
            if started == "by_time":  # a failure of the main process is everyone's
                with pytest.raises(ValueError, match="in use"), started_run(config):
                    pass

    def process(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        monkeypatch.setattr("onestep.build.distillation.distill", report)
        place = [] if started == "together" else [f"hydra.run.dir={tmp_path}/of_{rank}"]
        main(["train", "device=cpu", *place])

    assert [exit_code(child) for child in [in_child(partial(process, rank)) for rank in range(2)]] == [0, 0]
    folders = {json.loads(path.read_text()) for path in found.iterdir()}
    assert len(list(found.iterdir())) == 2 and len(folders) == 1
    if started == "together":
        assert len(list((tmp_path / "outputs" / "f_distill_jensen_shannon").iterdir())) == 1
    else:
        assert folders == {str(tmp_path / "of_0")} and (tmp_path / "of_0" / "config.yaml").is_file()

"""What the stress tests start runs with, watch them by, do to them, and compare them by."""

import atexit
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from onestep.engine.checkpoint import damage, list_checkpoints
from onestep.engine.log import read_log
from tests.helpers.paths import REPOSITORY

#: Processes that are forked from one that has imported what they need, which takes seconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["onestep.distillation.loop", "tests.helpers.recordings"])


def wait_until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    """Look every millisecond; fail when it takes longer."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.001)


def last_iteration(run: Path) -> int:
    """Of the log, 0 without one."""
    return max((line["iteration"] for line in read_log(run / "log.jsonl")), default=0)


def newest_intact(run: Path) -> int:
    """The iteration of the newest undamaged checkpoint, 0 without one."""
    intact = [path for path in list_checkpoints(run) if damage(path) is None]
    return int(intact[-1].name.split("_")[1]) if intact else 0


def is_saving(run: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((run / "checkpoints").glob(".writing_*"))


def largest_difference(one: Path, other: Path) -> float:
    """Over every tensor of the two runs' last checkpoints."""
    left, right = (list_checkpoints(run)[-1] for run in (one, other))
    assert left.name == right.name
    files = sorted(path.name for path in left.glob("*.safetensors"))
    assert files == sorted(path.name for path in right.glob("*.safetensors")) and len(files) == 8
    largest = 0.0
    for name in files:
        ours, theirs = load_file(left / name), load_file(right / name)
        assert ours.keys() == theirs.keys() and ours
        differences = [(ours[key].double() - theirs[key].double()).abs().max() for key in ours]
        largest = max(largest, torch.stack(differences).max().item())
    return largest


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit: weights, optimisers, averages, statistics and every line of the log."""
    assert largest_difference(one, other) == 0
    assert read_log(one / "log.jsonl") == read_log(other / "log.jsonl")


def start_workers(count: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """``count`` processes of ``worker.py`` on this machine, which know each other without a launcher."""
    return [
        subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests" / "stress" / "worker.py"), *arguments],
            env=os.environ | rank | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in _ranks(count)
    ]  # fmt: skip


def run_together(count: int, task: Callable[..., None], *arguments: Any, meanwhile: Callable[[], Any] = int) -> None:
    """Run ``task`` in ``count`` processes that know each other, without their imports; and ``meanwhile`` in this one.

    Each must succeed, and leave no thread of gloo at its end: it can abort the program.
    """
    started = [PROCESSES.Process(target=_of_rank, args=(rank, task, arguments)) for rank in _ranks(count)]
    for process in started:
        process.start()
    try:
        meanwhile()
        for process in started:
            process.join(300)
        assert [process.exitcode for process in started] == [0] * count
    finally:
        for process in started:
            process.kill()


def _of_rank(rank: dict[str, str], task: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(rank)
    torch.set_num_threads(1)
    task(*arguments)
    atexit._run_exitfuncs()  # multiprocessing ends a process without them
    check_threads()


def check_threads() -> None:
    """End with an exit code if a thread of gloo is left."""
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    if left := [name for name in names if "gloo" in name]:
        print(f"threads at the end: {left}", flush=True)
        os._exit(9)


def _ranks(count: int) -> list[dict[str, str]]:
    """The environment of each of ``count`` processes on this machine, as of a launcher."""
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": f"{count}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{free.getsockname()[1]}"}
    return [{"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} | common for rank in range(count)]


def kill(process: BaseProcess, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process of the test's own."""
    assert process.pid is not None
    os.kill(process.pid, number)

"""What the stress tests watch runs by, do to them, and compare them by."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from safetensors.torch import load_file

from onestep.engine.checkpoint import damage, list_checkpoints
from onestep.engine.log import read_log
from tests.helpers.paths import REPOSITORY


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = []
    for rank in range(count):
        together = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        environment = os.environ | {key: str(value) for key, value in together.items()} if count > 1 else os.environ
        workers.append(
            subprocess.Popen(
                [sys.executable, str(REPOSITORY / "tests" / "stress" / "worker.py"), *arguments],
                env=environment | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    return workers


def kill(process: BaseProcess, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process of the test's own."""
    assert process.pid is not None
    os.kill(process.pid, number)

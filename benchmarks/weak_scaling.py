"""Weak scaling: iterations per second and bytes sent per iteration, with constant images per process.

``python benchmarks/weak_scaling.py [--processes 1 2] [--iterations 30] [OVERRIDE ...]`` trains on the local CPU and
prints a table. The gradients' bytes are those of one all-reduce of each trained parameter per step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from onestep.build.distillation import build_distillation
from onestep.config import compose
from onestep.distillation import loop
from onestep.distillation.report import DistillationReport
from onestep.engine.run import Run
from onestep.engine.settings import TrainingSettings
from onestep.seeding import BatchRandom

ROOT = Path(__file__).resolve().parents[1]
IMAGES_EACH = 32


class CountBytes(TorchDispatchMode):
    """Counts the bytes that this process sends to each collective operation."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = str(function)
        if name.startswith(("c10d.", "_c10d_functional.")):
            inputs = arguments[1] if "gather" in name or "scatter" in name else arguments[0]
            tensors = inputs if isinstance(inputs, list | tuple) else [inputs]
            size = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
            self.sent[name] = self.sent.get(name, 0) + size
        return function(*arguments, **(options or {}))


def measure(output: Path, overrides: list[str], skip: int = 5) -> None:
    """One process of a training; the main process writes the measurements, without the first ``skip`` iterations."""
    torch.set_num_threads(1)
    count, clock = CountBytes(), list[float]()
    DistillationReport.interim = lambda *_: []  # type: ignore[method-assign]
    DistillationReport.final = lambda *_: {}  # type: ignore[method-assign]
    Run.save = lambda *_: None  # type: ignore[method-assign]
    parts = build_distillation(compose("train", overrides))
    random = parts.run.random

    def record_and_return(settings: TrainingSettings, iteration: int, *stream: int) -> BatchRandom:
        if iteration == skip:
            count.sent.clear()
        clock.append(time.monotonic())
        return random(settings, iteration, *stream)

    parts.run.random = record_and_return  # type: ignore[method-assign]
    with count:
        loop.distill(parts)
    iterations, gradients = len(clock) - skip, 0
    for title, guard in parts.optimizers.items():
        steps = parts.critics.steps if title == "critics" else 1
        # A parameter with a state has had a gradient.
        gradients += steps * sum(p.nbytes for optimizer in guard.optimizers.values() for p in optimizer.state)
    if parts.run.accelerator.is_main_process:
        result = {
            "iterations_per_second": (iterations - 1) / (clock[-1] - clock[skip]),
            "bytes_per_iteration": sum(count.sent.values()) / iterations,
            "gradient_bytes": gradients,
            "by_operation": {name: size / iterations for name, size in count.sent.items()},
        }
        (output / "measured.json").write_text(json.dumps(result))


def train_apart(processes: int, iterations: int, overrides: Sequence[str]) -> dict[str, Any]:
    """The result of :func:`measure` for a training in ``processes`` new processes, :data:`IMAGES_EACH` images each."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            "device=cpu", "precision=no", f"training.batch_size={IMAGES_EACH * processes}", f"output={folder}/run",
            f"training.total_images={IMAGES_EACH * processes * iterations}", *overrides,
        ]  # fmt: skip
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(launcher if processes > 1 else []), __file__, "--measure", folder, *overrides]
        finished = subprocess.run(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        if finished.returncode:
            sys.exit(finished.stderr)
        return json.loads((Path(folder) / "measured.json").read_text())


def main() -> None:
    """Read the command line, train with each number of processes, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.overrides)
        return
    table = Table(title=f"{IMAGES_EACH} images per iteration and process")
    for title in (
        "processes",
        "iterations/s",
        "images/s",
        "bytes sent per iteration and process",
        "of the gradients",
        "ratio",
    ):
        table.add_column(title, justify="right")
    for processes in arguments.processes:
        found = train_apart(processes, arguments.iterations, arguments.overrides)
        needed = found["gradient_bytes"] if processes > 1 else 0
        rate, sent = found["iterations_per_second"], found["bytes_per_iteration"]
        ratio = f"{sent / needed:.4f}" if needed else ""
        table.add_row(str(processes), f"{rate:.2f}", f"{rate * IMAGES_EACH * processes:.0f}", f"{sent:,.0f}",
                      f"{needed:,}", ratio)  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()

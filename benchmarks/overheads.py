"""The overheads of a run in the default CIFAR-10 settings in addition to its iterations, from measured parts.

    python benchmarks/overheads.py [--batch-size 4] [objective=sid ...]

Logging, grids, checkpoints and FID, each in seconds and, with the interval of the configuration, as a fraction of an
iteration. The time for the configured batch size is proportional to that for --batch-size images; on a GPU, set the
configured one. Inception, which would have to be downloaded, is estimated from its paper's FLOPs and the FLOP/s of an
iteration. Background writes count in full. Seconds are CPU time on the CPU, which other jobs do not affect, and
wall-clock time with a GPU.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from onestep.config import CONF
from onestep.engine.checkpoint import write_checkpoint
from onestep.engine.log import RunLog
from onestep.engine.state import TrainingState
from onestep.metrics.frechet import frechet_distance
from onestep.metrics.statistics import FeatureStatistics
from onestep.profiling.measure import run_iteration, timed
from onestep.profiling.passes import count
from onestep.profiling.subject import CIFAR10, Subject
from onestep.reports.plots import save_samples

INCEPTION_GFLOP = 11.4  # 5.7 billion multiply-adds an image of 299 x 299 (arXiv 1512.00567)
INCEPTION_FEATURES = 2048


def seconds(action: Callable[[], object]) -> float:
    """The duration of ``action``: wall-clock time with a GPU, else CPU time."""
    duration = timed(action)
    return duration.clock if torch.cuda.is_available() else duration.processor


def log_of_an_iteration(subject: Subject, diagnostics: list[dict[str, Tensor]], folder: Path) -> float:
    """Seconds per iteration for the log, including its lines."""
    every = subject.parts.settings.log_every
    log = RunLog(Accelerator(cpu=subject.device.type == "cpu"), folder / "log.jsonl", every, 0, 1, every)

    def iterations() -> None:
        for iteration in range(1, every + 1):
            for update in diagnostics:
                log.add(update)
            log.end_iteration(iteration)

    duration = seconds(iterations) / every
    log.close()
    return duration


def checkpoint(subject: Subject, folder: Path) -> float:
    """Seconds for the copy of the state and its writing."""
    parts = subject.parts
    state = TrainingState(parts.saved_networks, parts.optimizers)

    def save() -> None:
        snapshot = state.snapshot()
        assert snapshot is not None
        write_checkpoint(folder, snapshot, keep_last=1)

    return seconds(save)


def frechet(samples: int) -> float:
    """Seconds for mean, covariance and distance of ``samples`` features."""
    statistics, batch = FeatureStatistics(INCEPTION_FEATURES), torch.randn(1000, INCEPTION_FEATURES)
    updates = seconds(lambda: [statistics.update(batch) for _ in range(3)]) / 3 * samples / len(batch)
    moments = statistics.moments()
    return updates + seconds(lambda: frechet_distance(moments, moments))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    subject = Subject("ddpmpp", options.overrides, options.batch_size)
    settings, evaluation = subject.parts.settings, subject.parts.evaluation
    batch_size = OmegaConf.load(CONF / "experiment" / "benchmark" / "cifar10_uncond.yaml").training.batch_size
    counted = count(subject)
    diagnostics = list(subject.iteration())
    iteration = seconds(lambda: run_iteration(subject)) * batch_size / options.batch_size
    rate = counted.gflop_per_image * batch_size / iteration  # GFLOP per second
    image = counted.forward / counted.batch_size / 1e9 + INCEPTION_GFLOP
    samples = evaluation.interim_samples
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {
            "log": (log_of_an_iteration(subject, diagnostics, folder), 1),
            "grid": (
                seconds(lambda: save_samples(torch.rand(evaluation.grid, *CIFAR10), folder / "grid.png")),
                settings.evaluate_every,
            ),
            "checkpoint": (checkpoint(subject, folder), settings.checkpoint_every),
            f"FID of {samples:,} samples": (samples * image / rate + frechet(samples), settings.evaluate_every),
        }
    table = Table(
        "",
        "seconds",
        "every",
        "of an iteration",
        title=f"overheads of iterations of {batch_size} images, {iteration:.3g} s each",
    )
    fractions = {part: duration / every / iteration for part, (duration, every) in parts.items()}
    for part, (duration, every) in parts.items():
        table.add_row(part, f"{duration:.4g}", f"{every:,} iterations", f"{fractions[part]:.4%}")
    table.add_row("all", "", "", f"{sum(fractions.values()):.4%}")
    Console().print(table)


if __name__ == "__main__":
    main()

"""What a run spends beside its iterations in the default CIFAR-10 settings, computed from its measured parts.

    python benchmarks/overheads.py [--batch-size 4] [objective=sid ...]

Logging, grids, checkpoints and FID, each in seconds and, by the interval of the configuration, as a share of an
iteration. The settings' batch is computed from one of --batch-size images, in proportion; on a GPU give the batch
itself. Inception, which has to be downloaded, is put at the FLOPs that its paper counts and at the iteration's own
rate. What is written in the background counts as if the run waited for it. Seconds are the processor's on the CPU,
which other jobs do not lengthen, and the clock's with a GPU.
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
    """What ``action`` takes: by the clock with a GPU, else of the processor."""
    taken = timed(action)
    return taken.clock if torch.cuda.is_available() else taken.processor


def log_of_an_iteration(subject: Subject, diagnostics: list[dict[str, Tensor]], folder: Path) -> float:
    """Seconds an iteration that the log takes, its lines included."""
    every = subject.parts.settings.log_every
    log = RunLog(Accelerator(cpu=subject.device.type == "cpu"), folder / "log.jsonl", every, 0, 1, every)

    def iterations() -> None:
        for iteration in range(1, every + 1):
            for update in diagnostics:
                log.add(update)
            log.end_iteration(iteration)

    taken = seconds(iterations) / every
    log.close()
    return taken


def checkpoint(subject: Subject, folder: Path) -> float:
    """Seconds of a copy of everything and of its writing."""
    parts = subject.parts
    state = TrainingState({**parts.trained_networks, "generator_ema": parts.ema.average}, parts.optimizers)

    def save() -> None:
        snapshot = state.snapshot()
        assert snapshot is not None
        write_checkpoint(folder, snapshot, keep_last=1)

    return seconds(save)


def frechet(samples: int) -> float:
    """Seconds of mean, covariance and distance of so many features."""
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
    batch_size = OmegaConf.load(CONF / "experiment" / "cifar10_uncond.yaml").training.batch_size
    counted = count(subject)
    diagnostics = list(subject.iteration())
    iteration = seconds(lambda: run_iteration(subject)) * batch_size / options.batch_size
    rate = counted.gflop_per_image * batch_size / iteration  # GFLOP a second
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
        title=f"beside iterations of {batch_size} images, {iteration:.3g} s each",
    )
    shares = {part: taken / every / iteration for part, (taken, every) in parts.items()}
    for part, (taken, every) in parts.items():
        table.add_row(part, f"{taken:.4g}", f"{every:,} iterations", f"{shares[part]:.4%}")
    table.add_row("all", "", "", f"{sum(shares.values()):.4%}")
    Console().print(table)


if __name__ == "__main__":
    main()

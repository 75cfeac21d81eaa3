"""Parts of a training without a run around them."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from accelerate import Accelerator
from torch import Tensor

from onestep.distillation import loop
from onestep.distillation.parts import Distillation
from onestep.distillation.schedule import batches_per_iteration
from onestep.engine.batches import Batches
from onestep.engine.settings import TrainingSettings


def take_updates(parts: Distillation, iterations: int = 1) -> Iterator[dict[str, Tensor]]:
    """The diagnostics of every update of the first iterations, without a folder, EMA or evaluation."""
    batches = Batches(parts.run, parts.settings, parts.data, batches_per_iteration(parts.updates))
    for iteration, data in zip(range(iterations), batches.start_at(0), strict=False):
        yield from loop.updates(parts, iteration, parts.run.random(parts.settings, iteration), data)


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, processes: int) -> None:
    """Let accelerate say that this is one of several processes, which there are not: nothing is reduced over them."""
    for name, value in (("process_index", rank), ("num_processes", processes)):
        monkeypatch.setattr(Accelerator, name, property(partial(_constant, value)))


def _constant(value: int, _: Accelerator) -> int:
    return value


def make_settings(**changes: Any) -> TrainingSettings:
    """Settings of 100 steps with 10 images, without warm-up or decay."""
    values: dict[str, Any] = {
        "total_images": 1000, "batch_size": 10, "warmup_images": 0, "final_lr": 1.0, "log_every": 1,
        "checkpoint_every": 10, "evaluate_every": 10, "keep_last": 2, "accumulation": 1, "max_skipped_steps": 1,
        "rollbacks": 0, "rollback_lr_factor": 0.5, "normalize_weights": True,
    }  # fmt: skip
    assert changes.keys() <= values.keys()
    return TrainingSettings(**(values | changes))

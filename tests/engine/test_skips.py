"""Skipped steps, the end of a run that has too many, and rollbacks."""

import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from onestep.build.distillation import build_distillation
from onestep.build.run import build_run
from onestep.data.dataset import NoData, PositionSampler, TrainingDataset
from onestep.engine.batches import Batches
from onestep.engine.checkpoint import list_checkpoints
from onestep.engine.log import read_log
from onestep.engine.loop import train
from onestep.engine.optimizer import BadSample, GuardedOptimizer, NonFiniteError, SkippedStepError
from onestep.engine.settings import TrainingSettings
from onestep.engine.skips import skip_step
from onestep.engine.state import TrainingState
from tests.helpers.configs import tiny_config
from tests.helpers.updates import make_settings


def train_with_skips(
    folder: Path, settings: TrainingSettings, skipped: Callable[[int, float], bool], overflow: bool = False
) -> tuple[TrainingState, list[int]]:
    """A training whose step of iteration ``i`` at the rate's factor ``f`` is skipped if ``skipped(i, f)``.

    Returns its state and the iterations of its updates.
    """
    network = nn.Linear(1, 1)
    guard = GuardedOptimizer({"network": torch.optim.SGD(network.parameters(), lr=1.0)}, settings)
    state, updates = TrainingState({"network": network}, {"network": guard}), list[int]()

    def update(iteration: int, *_: object) -> None:
        updates.append(iteration)
        if skipped(iteration, guard.lr_factor):
            raise SkippedStepError({"loss": torch.nan}, [], overflow)

    run = build_run(tiny_config(folder))
    with run.claimed(), run.guarded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(run, state, settings, NoData((1, 1, 1), 0), update, lambda _: [])
    return state, updates


@pytest.mark.parametrize(
    ("skipped", "count", "expected"),
    [
        (lambda i: True, 4, r"4 of 4 steps were skipped"),
        (lambda i: i != 1, 4, r"3 of 4 steps were skipped.*log\.jsonl names"),
        (lambda i: i < 2, 4, 2),  # half of them
        (lambda i: i % 3 == 0, 60, 20),
        (lambda i: i % 2 == 0, 60, r"and so were 8 of the 16 before it"),  # 1 - 0.5 for each two iterations
        (lambda i: i >= 50, 60, r"and so were 4 of the 54 before it"),
    ],
)
def test_a_run_with_too_many_skipped_steps_fails(
    skipped: Callable[[int], bool], count: int, expected: str | int, tmp_path: Path
) -> None:
    settings = make_settings(total_images=10 * count, max_skipped_steps=5, checkpoint_every=100)
    if isinstance(expected, int):
        state, _ = train_with_skips(tmp_path, settings, lambda i, _: skipped(i))
        assert (state.skipped_steps, state.iteration) == (expected, count)
        return
    with pytest.raises(NonFiniteError, match=expected):
        train_with_skips(tmp_path, settings, lambda i, _: skipped(i))
    if count == 4:
        assert [path.name for path in list_checkpoints(tmp_path)] == ["iteration_00000004"]


def test_bad_samples_have_their_index_in_the_data(tmp_path: Path) -> None:
    """The fourth sample of the second of three batches of the third iteration."""
    parts = build_distillation(tiny_config(tmp_path, "seed=7"))
    lines: list[tuple[int, Any]] = []
    parts.run.log = SimpleNamespace(write=lambda *line: lines.append(line))  # type: ignore[assignment]
    skipped = SkippedStepError({"loss": torch.nan}, [BadSample("loss", position=3, sigma=1.0)], overflow=False)
    skipped.batch, state = 1, TrainingState({}, {})
    state.iteration, settings = 2, make_settings(batch_size=16, max_skipped_steps=2)
    with pytest.warns(UserWarning, match="step skipped, 1 of 3 so far"):
        skip_step(parts.run, skipped, state, settings, Batches(parts.run, settings, parts.data, per_iteration=3))
    assert isinstance(parts.data, TrainingDataset)
    index = next(iter(PositionSampler(len(parts.data), 16, seed=7, start=2 * 3 + 1)))[3]
    sample = {"term": "loss", "position": 3, "sigma": 1.0, "index": index}
    assert lines == [(3, {"skipped_step": {"loss": "nan"}, "bad_samples": 1, "samples": [sample]})]


def test_overflows_of_fp16_stop_no_run_before_its_end(tmp_path: Path) -> None:
    settings = make_settings(total_images=80, max_skipped_steps=2, checkpoint_every=100)
    with pytest.raises(NonFiniteError, match="6 of 8 steps were skipped"):
        train_with_skips(tmp_path, settings, lambda i, _: i < 6, overflow=True)


@pytest.mark.parametrize(
    ("keep_last", "rollbacks", "skipped", "targets", "message"),
    [
        # Further back each time, until a rate is low enough; iteration 6 is the first to fail.
        (3, 4, lambda i, f: i >= 6 and f > 0.1, [6, 4, 2, 2], None),
        (1, 4, lambda i, f: i >= 6 and f > 0.1, [6, 6, 6, 6], None),
        (3, 2, lambda i, f: i >= 6, [6, 4], r"All rollbacks are used \(training\.rollbacks=2\).*resume=auto"),
        # From a later failure to the newest checkpoint again.
        (3, 2, lambda i, f: (i >= 6 and f == 1) or (i >= 9 and f == 0.5), [6, 8], None),
        (3, 0, lambda i, f: i >= 6, [], r"resume=auto, or set training\.rollbacks"),
        (3, 9, lambda i, f: i >= 1, [], r"There is no checkpoint to return to: .*start again"),
    ],
)
def test_rollbacks_go_further_back(
    keep_last: int, rollbacks: int, skipped: Callable[[int, float], bool], targets: list[int], message: str | None,
    tmp_path: Path,
) -> None:  # fmt: skip
    settings = make_settings(
        total_images=120, max_skipped_steps=2, checkpoint_every=2, keep_last=keep_last, rollbacks=rollbacks
    )
    if message is None:
        state, updates = train_with_skips(tmp_path, settings, skipped)
        factor = state.optimizers["network"].lr_factor
        assert (state.rollbacks, factor, state.skipped_steps) == (len(targets), 0.5 ** len(targets), 0)
        starts = [now for then, now in pairwise(updates) if now != then + 1]
        assert starts == targets and updates[-1] == 11
    else:
        with pytest.raises(NonFiniteError, match=message):
            train_with_skips(tmp_path, settings, skipped)
    logged = [line["iteration"] for line in read_log(tmp_path / "log.jsonl") if "rollback" in line]
    assert logged[-1:] == targets[-1:]

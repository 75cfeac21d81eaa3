"""Signals during evaluations, and failures of the machine and of metrics at the end of a run."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from onestep.build.distillation import distill
from onestep.engine.failures import explain_failure
from onestep.engine.log import read_log
from onestep.engine.signals import STOPPED
from onestep.entry import explained
from onestep.evaluation import generate, of_run
from onestep.metrics.recall import Recall
from onestep.models.generator import Generator
from tests.helpers.configs import tiny_config
from tests.helpers.killed_run import assert_same_checkpoint

OUT_OF_MEMORY = r"out of memory.*training\.batch_size.*training\.accumulation.*gradient_checkpointing=true"


@pytest.mark.parametrize(
    ("batch", "stopped", "evaluated"),
    [
        (1, "iteration_00000003", False),
        pytest.param(2, "iteration_00000003", False, marks=pytest.mark.slow),  # in the grid of images
        pytest.param(3, "iteration_00000006", False, marks=pytest.mark.slow),
        (5, "iteration_00000006", True),  # in the final evaluation, of the teacher
        (8, "iteration_00000006", True),  # of the student
    ],
)
def test_a_signal_in_an_evaluation(
    batch: int, stopped: str, evaluated: bool, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops at the next batch and saves; resumed, it evaluates and is the same run."""
    batches = 0

    def generate_and_signal(*arguments: Any) -> Iterator[Tensor]:
        nonlocal batches
        for images in generate.generate_local(*arguments):
            batches += 1
            if batches == batch:
                os.kill(os.getpid(), signal.SIGTERM)
            assert batches <= batch, "the evaluation went on"
            yield images

    overrides = ("training.checkpoint_every=100",)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(of_run, "generate_local", generate_and_signal)
        distill(tiny_config(tmp_path, *overrides))
    assert caught.value.code == STOPPED
    checkpoints = tmp_path / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir())[-1] == stopped
    assert json.loads((checkpoints / stopped / "state.json").read_text())["evaluated"] is evaluated
    assert (tmp_path / "generator").is_dir() is evaluated and not (tmp_path / "summary.json").exists()

    distill(tiny_config(tmp_path, *overrides, "resume=auto"))
    (last,) = checkpoints.glob("iteration_00000006*")
    assert_same_checkpoint(finished_run / "checkpoints" / "iteration_00000006", last)
    assert read_log(tmp_path / "log.jsonl") == read_log(finished_run / "log.jsonl")
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, finished_run))
    assert all(ours[side]["fid"] == theirs[side]["fid"] for side in ("teacher", "student"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "stopped: .*No space left on device"),
        (SafetensorError("I/O error: No space left on device"), "stopped: .*No space left on device"),
        (MemoryError(), OUT_OF_MEMORY),
        (RuntimeError("[gloo] Connection closed by peer"), "process 0 failed, perhaps because another one died"),
    ],
)
def test_the_final_stage_is_guarded(
    error: Exception, message: str, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Generator, "save_pretrained", fail)
    with pytest.raises(ValueError, match=f"{message}.*The last checkpoint is intact: continue with resume=auto"):
        distill(tiny_config(tmp_path, f"resume={finished_run}"))


def test_a_value_that_cannot_be_computed_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> float:
        raise ValueError("too few samples")

    monkeypatch.setattr(Recall, "__call__", fail)
    with (
        pytest.warns(UserWarning, match="recall cannot be computed after iteration 3: too few samples"),
        pytest.raises(
            ValueError, match=r"recall of the teacher: too few samples; recall of the student: too few .*summary\.json"
        ),
    ):
        distill(tiny_config(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert all(summary[side]["recall"] is None and summary[side]["fid"] > 0 for side in ("teacher", "student"))
    assert Generator.from_pretrained(tmp_path / "generator") and (tmp_path / "side_by_side.png").is_file()
    assert [line["iteration"] for line in read_log(tmp_path / "log.jsonl") if "fid" in line] == [3, 6]


# Errors and signals of every command.


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 9 GiB"), OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory.\n Tried"), OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OUT_OF_MEMORY),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), "reading process.*lower num_workers"),
        (RuntimeError("DataLoader timed out after 3 seconds"), "reading process.*lower num_workers"),
        (torch.distributed.DistNetworkError("timed out"), "process 0 failed, perhaps"),
        (RuntimeError("shapes differ"), None),
    ],
)
def test_errors_of_the_machine_in_one_line(error: Exception, message: str | None) -> None:
    expected = RuntimeError if message is None else SystemExit
    with pytest.raises(expected, match=message) as caught, explained(traceback=False):
        raise error
    assert "\n" not in str(caught.value) and (explain_failure(error) is None) is (message is None)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_outside_a_training(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, explained(traceback=False), explained(traceback=False):
        os.kill(os.getpid(), number)
    assert caught.value.code == 128 + number and signal.getsignal(number) is before
    assert capsys.readouterr().err == f"interrupted by {name}\n"

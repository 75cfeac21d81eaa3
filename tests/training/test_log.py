"""The log's lines."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from onestep.training.log import RunLog, read_log


def open_log(accelerator: Accelerator, path: Path, start: int = 0, every: int = 2) -> RunLog:
    return RunLog(accelerator, path, total=20, start=start, batch_size=16, every=every)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def test_lines_are_means_over_their_cycles(accelerator: Accelerator, path: Path) -> None:
    log = open_log(accelerator, path)
    for cycle, loss in enumerate(([1.0, 3.0], [6.0, 6.0], [5.0, 5.0], [8.0, 8.0], [100.0, 100.0]), start=1):
        log.add({"loss": torch.tensor(loss, requires_grad=True), "norm": torch.tensor(float(cycle))})
        log.end_cycle(cycle)
    log.close()
    assert read_log(path) == [
        {"cycle": 2, "images_seen": 32, "loss": 4.0, "norm": 1.5},
        {"cycle": 4, "images_seen": 64, "loss": 6.5, "norm": 3.5},
    ]


def test_value_given_several_times_a_cycle(accelerator: Accelerator, path: Path) -> None:
    """As the fake score's losses are, with several updates a cycle."""
    log = open_log(accelerator, path, every=1)
    for value in (1.0, 2.0, 6.0):
        log.add({"fake_score_loss": torch.tensor([value])})
    log.add({"loss": torch.tensor([4.0])})
    log.end_cycle(1)
    log.close()
    assert read_log(path) == [{"cycle": 1, "images_seen": 16, "fake_score_loss": 3.0, "loss": 4.0}]


def write_lines(path: Path, cycles: range) -> None:
    path.write_text("".join(json.dumps({"cycle": cycle, "loss": 0.5 * cycle}) + "\n" for cycle in cycles))


def test_resuming_drops_the_lines_after_the_checkpoint(accelerator: Accelerator, path: Path) -> None:
    write_lines(path, range(1, 7))
    log = open_log(accelerator, path, start=4)
    assert [line["cycle"] for line in read_log(path)] == [1, 2, 3, 4]
    log.write(5, {"loss": -1.0})
    log.close()
    assert read_log(path)[3:] == [{"cycle": 4, "loss": 2.0}, {"cycle": 5, "images_seen": 80, "loss": -1.0}]
    open_log(accelerator, path, start=0).close()
    assert read_log(path) == []


def test_last_line_cut_by_a_crash_is_left_out(accelerator: Accelerator, path: Path) -> None:
    write_lines(path, range(1, 4))
    whole = path.read_text()
    path.write_text(whole[:-8])
    assert [line["cycle"] for line in read_log(path)] == [1, 2]
    log = open_log(accelerator, path, start=3)
    log.write(4, {"loss": 0.25})
    log.close()
    assert [line["cycle"] for line in read_log(path)] == [1, 2, 4]


def test_no_log_has_no_lines(path: Path) -> None:
    assert read_log(path) == []

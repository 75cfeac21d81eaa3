"""The log's lines."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from onestep.engine.log import RunLog, read_log


def open_log(accelerator: Accelerator, path: Path, start: int = 0, every: int = 2, **options: Any) -> RunLog:
    return RunLog(accelerator, path, total=20, start=start, batch_size=16, every=every, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def test_lines_are_means_over_their_iterations(accelerator: Accelerator, path: Path) -> None:
    log = open_log(accelerator, path)
    for iteration, loss in enumerate(([1.0, 3.0], [6.0, 6.0], [5.0, 5.0], [8.0, 8.0], [100.0, 100.0]), start=1):
        log.add({"loss": torch.tensor(loss, requires_grad=True), "norm": torch.tensor(float(iteration))})
        log.end_iteration(iteration)
    log.close()
    assert read_log(path) == [
        {"iteration": 2, "images_seen": 32, "loss": 4.0, "norm": 1.5},
        {"iteration": 4, "images_seen": 64, "loss": 6.5, "norm": 3.5},
    ]


def test_the_device_and_other_processes_are_waited_for_at_log_time_alone(
    accelerator: Accelerator, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[int] = []

    def gather(moments: torch.Tensor) -> torch.Tensor:
        gathered.append(moments.numel() // 4)
        return moments

    monkeypatch.setattr(accelerator, "gather", gather)
    log = open_log(accelerator, path, every=3)
    for iteration in range(1, 9):
        log.add({"loss": torch.tensor([iteration, 1.5]), "norm": torch.tensor(1.0)})
        log.end_iteration(iteration)
    assert gathered == [6, 6]  # two values of three iterations each
    assert [iteration["loss"][:2] for iteration in log.state()] == [
        [2.0, 8.5],
        [2.0, 9.5],
    ]  # a checkpoint's: count and sum
    assert gathered == [6, 6, 4]
    log.close()


def test_value_given_several_times_an_iteration(accelerator: Accelerator, path: Path) -> None:
    """For example the fake score's losses, with several updates per iteration."""
    log = open_log(accelerator, path, every=1)
    for value in (1.0, 2.0, 6.0):
        log.add({"fake_score_loss": torch.tensor([value])})
    log.add({"loss": torch.tensor([4.0])})
    log.end_iteration(1)
    log.close()
    assert read_log(path) == [{"iteration": 1, "images_seen": 16, "fake_score_loss": 3.0, "loss": 4.0}]


def test_spreads_are_those_within_a_batch(accelerator: Accelerator, path: Path) -> None:
    """Weights 1, 3 and 5, 5: standard deviations 1 and 0, with and without micro-batches."""
    log = open_log(accelerator, path)
    log.add({"weight": torch.tensor([[1.0], [3.0]]), "log_ratio": torch.tensor([0.0, 2.0])})
    log.end_iteration(1)
    log.add({"weight": torch.tensor([5.0]), "log_ratio": torch.tensor([4.0, 4.0])})
    log.add({"weight": torch.tensor([5.0])})
    log.end_iteration(2)
    log.close()
    (line,) = read_log(path)
    assert line == {"iteration": 2, "images_seen": 32, "weight_mean": 3.5, "weight_std": 0.5, "weight_max": 4.0,
                    "log_ratio_mean": 2.5, "log_ratio_std": 0.5}  # fmt: skip


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_a_line_is_over_the_same_iterations_whenever_a_run_resumes(
    accelerator: Accelerator, tmp_path: Path, stop: int
) -> None:
    def iterations(log: RunLog, numbers: range) -> RunLog:
        for iteration in numbers:
            log.add(
                {"loss": torch.tensor([iteration, 1.5])} | ({"rare": torch.tensor([3.0])} if iteration == 4 else {})
            )
            log.end_iteration(iteration)
        return log

    straight, resumed = tmp_path / "straight.jsonl", tmp_path / "resumed.jsonl"
    iterations(open_log(accelerator, straight, every=3), range(1, 10)).close()
    pending = iterations(open_log(accelerator, resumed, every=3), range(1, stop + 1)).state()
    assert len(pending) == {4: 1, 5: 2, 6: 0}[stop]
    iterations(open_log(accelerator, resumed, start=stop, every=3, pending=pending), range(stop + 1, 10)).close()
    assert resumed.read_text() == straight.read_text() and len(read_log(resumed)) == 3


def write_lines(path: Path, iterations: range) -> None:
    path.write_text(
        "".join(
            json.dumps({"iteration": iteration, "images_seen": 16 * iteration, "loss": 0.5 * iteration}) + "\n"
            for iteration in iterations
        )
    )


def test_resuming_drops_the_lines_after_the_checkpoint(accelerator: Accelerator, path: Path) -> None:
    write_lines(path, range(1, 7))
    log = open_log(accelerator, path, start=4)
    assert [line["iteration"] for line in read_log(path)] == [1, 2, 3, 4]
    log.write(5, {"loss": -1.0})
    log.close()
    assert read_log(path)[3:] == [
        {"iteration": 4, "images_seen": 64, "loss": 2.0},
        {"iteration": 5, "images_seen": 80, "loss": -1.0},
    ]
    open_log(accelerator, path, start=0).close()
    assert read_log(path) == []


def test_last_line_cut_by_a_crash_is_left_out(accelerator: Accelerator, path: Path) -> None:
    write_lines(path, range(1, 4))
    text = path.read_text()
    path.write_text(text[:-8])
    assert [line["iteration"] for line in read_log(path)] == [1, 2]
    log = open_log(accelerator, path, start=3)
    log.write(4, {"loss": 0.25})
    log.close()
    assert [line["iteration"] for line in read_log(path)] == [1, 2, 4]


def test_no_log_has_no_lines(path: Path) -> None:
    assert read_log(path) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"iteration": 3, "lo', "line 2: no JSON"),
        (b"\xff\xfe", "line 2: no JSON"),
        (b"[1, 2]", "line 2: the content=.*expected an object"),
        (b'{"loss": 1.0}', "line 2: iteration=None: expected an integer"),
        (b'{"iteration": true}', "line 2: iteration=True: expected an integer"),
        (b'{"iteration": 2, "loss": 1.0}', "line 2: images_seen=None: expected an integer"),
        (b'{"iteration": 2, "images_seen": "8"}', "line 2: images_seen='8': expected an integer"),
        *(
            (b'{"iteration": 2, "images_seen": 8, "fid": %s}' % value, r"line 2: fid=.*: expected a number or null")
            for value in (b'"text"', b"true", b"[1]", b'{"a": 1}', b"1" + b"0" * 301)
        ),
        (b'{"iteration": 2, "loss": NaN}', "line 2: no JSON"),
        (b'{"iteration": ' + b"[" * 5000, "line 2: no JSON: recursion limit"),
    ],
)
def test_a_damaged_line_costs_no_other(accelerator: Accelerator, path: Path, line: bytes, reason: str) -> None:
    write_lines(path, range(1, 4))
    first, _, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + last)
    with pytest.warns(UserWarning, match=f"damaged and left out: 1. .*{reason}"):
        assert [line["iteration"] for line in read_log(path)] == [1, 3]


def test_a_log_without_end_is_refused(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**34)  # a sparse file
    with pytest.raises(ValueError, match="a line has more than 1,048,576 bytes"):
        read_log(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="expected a file"):
        read_log(path)


def test_numbers_that_are_not_finite_are_null_in_the_file(accelerator: Accelerator, path: Path) -> None:
    log = open_log(accelerator, path)
    log.write(1, {"loss": math.nan, "samples": [{"sigma": math.inf}]})
    log.close()
    assert path.read_text() == '{"iteration": 1, "images_seen": 16, "loss": null, "samples": [{"sigma": null}]}\n'
    assert math.isnan(read_log(path)[0]["loss"])

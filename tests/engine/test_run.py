"""The run's best checkpoints, and its end on errors."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from onestep.build.distillation import distill
from onestep.build.run import build_run
from onestep.engine.checkpoint import list_checkpoints
from onestep.engine.log import RunLog, read_log
from onestep.engine.state import TrainingState
from onestep.metrics.result import Measurement
from tests.helpers.configs import tiny_config
from tests.helpers.updates import make_settings

VALUES = {1: 5.0, 2: 3.0, 3: 4.0, 4: 6.0, 5: 3.5, 6: 7.0}


@pytest.mark.parametrize("key", ["fid", "fid50k", "recall"])
def test_the_best_is_saved_and_kept(key: str, tmp_path: Path) -> None:
    """The smallest value or, if higher is better, the largest of the negated values; that of a second average too."""
    run, state = build_run(tiny_config(tmp_path)), TrainingState({"network": nn.Linear(2, 2)}, {})
    settings = make_settings(total_images=60, checkpoint_every=4, keep_last=1)
    higher_is_better = key == "recall"
    sign = -1 if higher_is_better else 1
    run.start(state, settings, {})
    with run.guarded():
        for state.iteration, value in VALUES.items():
            values = {key: value, f"{key}/slow": abs(state.iteration - 3)}
            measured = [Measurement(name, sign * number, higher_is_better) for name, number in values.items()]
            run.end_iteration(state, settings, measured)
    kept = [json.loads((path / "manifest.json").read_text())["measured"] for path in list_checkpoints(tmp_path)]
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"iteration_{i:08d}" for i in (2, 3, 6)]
    assert [[one["value"] for one in measured] for measured in kept] == [
        [sign * 3.0, sign * 1.0], [sign * 4.0, 0.0], [sign * 7.0, sign * 3.0],
    ]  # fmt: skip
    for measured in kept:
        assert [one["key"] for one in measured] == [key, f"{key}/slow"]
        assert all(one["higher_is_better"] is higher_is_better for one in measured)


def test_a_distillation_keeps_the_best_by_recall(tmp_path: Path) -> None:
    distill(tiny_config(tmp_path, "evaluation.best=recall", "training.evaluate_every=1", "training.keep_last=1"))
    recalls = {line["iteration"]: line["recall"] for line in read_log(tmp_path / "log.jsonl") if "recall" in line}
    assert list(recalls) == [1, 2, 3, 4, 5, 6] and len(set(recalls.values())) > 1
    best = max(recalls, key=lambda iteration: recalls[iteration])
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"iteration_{i:08d}" for i in sorted({best, 6})]
    manifest = json.loads((list_checkpoints(tmp_path)[0] / "manifest.json").read_text())
    assert manifest["measured"] == [{"key": "recall", "value": recalls[best], "higher_is_better": True}]


def test_a_disk_that_fills_between_checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write = RunLog.write

    def write_until_full(log: RunLog, iteration: int, values: dict[str, Any]) -> None:
        if iteration == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(log, iteration, values)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "write", write_until_full)
        with pytest.raises(ValueError, match=r"stopped: .*No space left on device.* continue with resume=auto"):
            distill(tiny_config(tmp_path, "training.checkpoint_every=2", "training.evaluate_every=100"))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["iteration_00000002"]

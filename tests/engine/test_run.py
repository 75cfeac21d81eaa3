"""A run's own part: which checkpoints it keeps, and how it ends where it cannot go on."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from torch import nn

from onestep.build.distillation import distill
from onestep.build.run import build_run
from onestep.engine.checkpoint import list_checkpoints
from onestep.engine.log import RunLog
from onestep.engine.settings import TrainingSettings
from onestep.engine.state import TrainingState

TrainConfig = Callable[..., DictConfig]
FIDS = {1: 5.0, 2: 3.0, 3: 4.0, 4: 6.0, 5: 3.5, 6: 7.0}


@pytest.mark.parametrize("name", ["fid", "fid50k"])
def test_the_least_fid_is_saved_and_kept(
    name: str, train_config: TrainConfig, make_settings: Callable[..., TrainingSettings], tmp_path: Path
) -> None:
    run, state = build_run(train_config(tmp_path)), TrainingState({"network": nn.Linear(2, 2)}, {})
    settings = make_settings(total_images=60, checkpoint_every=4, keep_last=1)
    run.start(state, settings)
    with run.guarded():
        for state.iteration, fid in FIDS.items():
            run.end_iteration(state, settings, {name: fid})
    scores = [json.loads((path / "manifest.json").read_text())["score"] for path in list_checkpoints(tmp_path)]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["iteration_00000002", "iteration_00000006"]
    assert scores == [3.0, 7.0]


def test_a_disk_that_fills_between_checkpoints(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = RunLog.write

    def write_until_full(log: RunLog, iteration: int, values: dict[str, Any]) -> None:
        if iteration == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(log, iteration, values)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "write", write_until_full)
        with pytest.raises(ValueError, match=r"cannot go on: .*No space left on device.* go on with resume=auto"):
            distill(train_config(tmp_path, "training.checkpoint_every=2", "training.evaluate_every=100"))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["iteration_00000002"]

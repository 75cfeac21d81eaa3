"""Accelerate's trackers: their runs are continued, and take settings, pictures and results."""

import importlib
import importlib.util
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate.utils import LoggerType
from PIL import Image

from onestep.build.distillation import distill
from onestep.engine import trackers
from onestep.engine.trackers import check_trackers, finish_trackers, send_picture, start_trackers
from tests.helpers.configs import tiny_config


@pytest.mark.parametrize(
    ("names", "installed", "message"),
    [
        (["tensorbord"], ["tensorboard"], "trackers=tensorbord: expected some of aim, .*tensorboard"),
        (["tensorboard", "wandb"], ["tensorboard"], "trackers=wandb: the package wandb is not installed"),
        (["all"], [], "trackers=all: one of their packages is not installed"),
        (["all"], ["wandb"], None),
        (["wandb"], ["tensorboard", "wandb"], None),
        ([], [], None),
    ],
)
def test_trackers_that_are_not_installed(
    names: list[str], installed: list[str], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [LoggerType(name) for name in installed])
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        check_trackers(names)


class Fake:
    """An accelerator whose trackers note what they get."""

    is_main_process = True

    def __init__(self, *names: str) -> None:
        self.log_with = names
        self.trackers: list[Any] = []
        self.options: dict[str, Any] = {}
        self.got: list[Any] = []

    def init_trackers(self, project: str, init_kwargs: dict[str, Any]) -> None:
        self.options = init_kwargs
        self.trackers = [self._tracker(name) for name in self.log_with]

    def log(self, values: dict[str, float], step: int) -> None:
        self.got.append((values, step))

    def _tracker(self, name: str) -> SimpleNamespace:
        def note(*values: Any, **options: Any) -> None:
            self.got.append((name, *values, *options.items()))

        info = SimpleNamespace(run_id="of mlflow")
        images = {} if name in ("mlflow", "comet_ml") else {"log_images": note}
        return SimpleNamespace(
            name=name,
            tracker=SimpleNamespace(id="of wandb", hash="of aim", info=info),
            finish=lambda: note("finished"),
            store_init_configuration=note,
            log_artifact=note,
            **images,
        )


def start(folder: Path, images_seen: int, *names: str) -> Any:
    accelerator: Any = Fake(*names)
    start_trackers(accelerator, folder, "sigma: {a@b: 1.5, flag: true}\nlist: [1, x]\nnone: null\n", images_seen)
    return accelerator


def test_a_resumed_run_is_the_same_run_of_its_trackers(tmp_path: Path) -> None:
    first = start(tmp_path, 0, "tensorboard", "wandb", "mlflow")
    settings = {"sigma.a:b": 1.5, "sigma.flag": True, "list": "[1, 'x']", "none": "None"}
    assert first.got == [(name, settings) for name in ("tensorboard", "wandb", "mlflow")]
    assert first.options == {"wandb": {"name": tmp_path.name}, "mlflow": {"run_name": tmp_path.name}}
    again = start(tmp_path, 64, "tensorboard", "wandb", "mlflow", "aim")  # a tracker more
    assert again.got == [("aim", settings)]
    assert again.options == {
        "tensorboard": {"purge_step": 65},
        "wandb": {"name": tmp_path.name, "id": "of wandb", "resume": "allow"},
        "mlflow": {"run_name": tmp_path.name, "run_id": "of mlflow"},
    }
    assert start(tmp_path, 96, "aim").options == {"aim": {"run_hash": "of aim"}}
    assert set(json.loads((tmp_path / "trackers.json").read_text())) == {"tensorboard", "wandb", "mlflow", "aim"}


def test_pictures_reach_the_trackers_that_take_them(tmp_path: Path) -> None:
    """TensorBoard's writer takes the order of the dimensions, Aim one picture, MLflow a file, and Comet's none."""
    path = tmp_path / "grid.png"
    Image.new("L", (6, 4)).save(path)
    accelerator = start(tmp_path, 0, "tensorboard", "wandb", "aim", "mlflow", "comet_ml")
    accelerator.got.clear()
    send_picture(accelerator, "samples", path, 48)
    *images, artifact = accelerator.got
    shapes = [(name, values["samples"].shape, dict(options)) for name, values, *options in images]
    assert shapes == [
        ("tensorboard", (1, 4, 6, 3), {"step": 48, "dataformats": "NHWC"}),
        ("wandb", (1, 4, 6, 3), {"step": 48}),
        ("aim", (4, 6, 3), {"step": 48}),
    ]
    assert all(values["samples"].dtype == np.uint8 for _, values, *_ in images)
    assert artifact == ("mlflow", str(path), "samples")


def test_the_results_reach_the_trackers(tmp_path: Path) -> None:
    accelerator = start(tmp_path, 0, "wandb")
    accelerator.got.clear()
    summary = {"student": {"fid": 2.5, "protocol": "x"}, "averages": {}, "images_seen": 64, "flag": True}
    finish_trackers(accelerator, summary)
    assert accelerator.got == [({"final/student/fid": 2.5, "final/images_seen": 64}, 64), ("wandb", "finished")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "aim"])
def test_a_run_with_the_tracker_itself(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    given = [f"trackers=[{name}]", "training.evaluate_every=1", "training.checkpoint_every=1"]
    iterations = 1, 2
    names = []
    for count in iterations:
        total = f"training.total_images={count * tiny_config(tmp_path).training.batch_size}"
        distill(tiny_config(tmp_path / "run", *given, total, *(["resume=auto"] if count > 1 else [])))
        names.append(json.loads((tmp_path / "run" / "trackers.json").read_text())[name])
    assert names[0] == names[1]
    if name == "mlflow":
        mlflow: Any = importlib.import_module(name)

        run = mlflow.get_run(names[0])
        assert run.info.status == "FINISHED" and run.data.params["training.batch_size"]
        assert run.data.metrics["final/images_seen"] == 2 * float(run.data.params["training.batch_size"])
        assert len(mlflow.MlflowClient().list_artifacts(names[0], "samples")) == 2

"""The files of a distillation, and its bitwise resumption."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from onestep.build.distillation import distill
from onestep.build.run import build_run
from onestep.data.dataset import NoData
from onestep.engine.log import read_log
from onestep.engine.loop import train
from onestep.engine.state import TrainingState
from onestep.models.generator import Generator
from tests.helpers.configs import FEW_STEPS, tiny_config
from tests.helpers.killed_run import assert_same_checkpoint, distill_until_iteration_5
from tests.helpers.updates import make_settings


def test_the_summary(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary.keys() == {
        "teacher", "student", "averages", "images_seen", "skipped_steps", "seconds", "results",
    }  # fmt: skip
    for side in ("teacher", "student"):
        assert summary[side].keys() == {"fid", "recall", "network_evaluations", "samples", "samples_per_second"}
        assert summary[side]["samples"] == 32
        assert summary[side]["fid"] > 0 and 0 <= summary[side]["recall"] <= 1
        assert summary[side]["samples_per_second"] > 0
    assert summary["teacher"]["network_evaluations"] == 3  # two steps of Heun
    assert summary["student"]["network_evaluations"] == 1
    assert summary["images_seen"] == 96 and summary["skipped_steps"] == 0  # 6 iterations of 16
    assert summary["seconds"] > 0


def test_the_log(finished_run: Path) -> None:
    lines = read_log(finished_run / "log.jsonl")
    training = [line for line in lines if "loss" in line]
    assert [line["iteration"] for line in training] == [1, 2, 3, 4, 5, 6]
    assert all(line["images_seen"] == 16 * line["iteration"] for line in lines)
    assert [line["iteration"] for line in lines if "fid" in line] == [3, 6]
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    # A new discriminator's logit is 0, its loss 2 log 2. After its first step Jensen-Shannon's weight is near 1/2.
    assert training[0]["discriminator_loss"] == pytest.approx(2 * np.log(2), rel=1e-6)
    assert training[0]["logit_real"] == training[0]["logit_generated"] == 0
    assert training[0]["weight_mean"] == pytest.approx(0.5, abs=0.01)


def test_the_config_is_written_resolved(finished_run: Path) -> None:
    text = (finished_run / "config.yaml").read_text()
    assert "${" not in text
    saved = OmegaConf.create(text)
    assert saved == OmegaConf.create(OmegaConf.to_container(tiny_config(finished_run), resolve=True))
    assert saved.fake_sigma == saved.sigma and saved.objective.divergence == saved.divergence


def test_the_files(finished_run: Path) -> None:
    written = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    assert {(finished_run / path).stat().st_mode for path in written} == {(finished_run / "config.yaml").stat().st_mode}
    beside_checkpoints = {path for path in written if not path.startswith("checkpoints/")}
    network = {"config.json", "diffusion_pytorch_model.safetensors", "generator.json"}
    assert beside_checkpoints == {
        "config.yaml", "log.jsonl", "machine.json", "summary.json", "curves.png", "side_by_side.png", "report.html",
        "samples/teacher.png", "samples/student.png",
        "samples/iteration_00000003.png", "samples/iteration_00000006.png",
        *(f"generator/{name}" for name in network), *(f"generator_raw/{name}" for name in network),
    }  # fmt: skip
    assert Image.open(finished_run / "samples" / "iteration_00000006.png").size == (500, 50)  # ten of 8 pixels, times 6
    for name in ("curves.png", "side_by_side.png"):
        assert np.asarray(Image.open(finished_run / name).convert("L")).std() > 10  # not blank
    assert sorted(path.name for path in (finished_run / "checkpoints").iterdir()) == [
        f"iteration_{iteration:08d}" for iteration in range(1, 7)
    ]


def test_the_generators_are_those_of_the_last_checkpoint(finished_run: Path) -> None:
    checkpoint = finished_run / "checkpoints" / "iteration_00000006"
    for folder, name in (("generator", "generator_ema"), ("generator_raw", "generator")):
        saved = load_file(checkpoint / f"{name}.safetensors")
        generator = Generator.from_pretrained(finished_run / folder)
        assert generator.sigma_init == OmegaConf.load(finished_run / "config.yaml").generator.sigma_init
        assert all(torch.equal(value, saved[key]) for key, value in generator.state_dict().items())


def test_a_run_shorter_than_its_first_log_line(tmp_path: Path) -> None:
    overrides = ("training.total_images=16", "training.log_every=5", "training.checkpoint_every=5")
    assert distill(tiny_config(tmp_path, *overrides))["images_seen"] == 16
    assert (tmp_path / "log.jsonl").read_text() == ""
    assert (tmp_path / "checkpoints" / "iteration_00000001").is_dir()  # the last iteration is always saved


# Resuming.


@pytest.mark.parametrize("straight_run, overrides", [("finished_run", ()), ("few_step_run", FEW_STEPS)])
def test_a_resumed_run_is_the_same_run(
    straight_run: str,
    overrides: tuple[str, ...],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished: Path = request.getfixturevalue(straight_run)
    overrides = (*overrides, "training.checkpoint_every=3")
    # The checkpoint is of iteration 3; the log extends to 5 and must be cut.
    distill_until_iteration_5(monkeypatch, tiny_config(tmp_path, *overrides))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["iteration_00000003"]
    assert read_log(tmp_path / "log.jsonl")[-1]["iteration"] == 5

    summary = distill(tiny_config(tmp_path, *overrides, "resume=auto"))
    for iteration in ("iteration_00000003", "iteration_00000006"):
        assert_same_checkpoint(finished / "checkpoints" / iteration, tmp_path / "checkpoints" / iteration)
    assert read_log(tmp_path / "log.jsonl") == read_log(finished / "log.jsonl")
    straight = json.loads((finished / "summary.json").read_text())
    for side in ("teacher", "student"):
        for key in ("fid", "recall"):
            assert summary[side][key] == straight[side][key]


def test_a_line_of_the_log_goes_on_where_a_run_resumes(tmp_path: Path) -> None:
    """Means over three iterations, of which the second has one before the checkpoint."""

    def train_for(images: int, *overrides: str) -> None:
        run, settings = build_run(tiny_config(tmp_path, *overrides)), make_settings(total_images=images, log_every=3)

        def update(iteration: int, _: object) -> None:
            run.log.add({"loss": torch.tensor([float(iteration)])})

        with run.claimed(), run.guarded():
            train(run, TrainingState({}, {}), settings, NoData((1, 1, 1), 0), update, lambda _: [])

    train_for(40)
    train_for(90, "resume=auto")
    lines = read_log(tmp_path / "log.jsonl")
    assert [(line["iteration"], line["loss"]) for line in lines] == [(3, 1.0), (6, 4.0), (9, 7.0)]


def test_a_resumed_run_reads_on_in_the_pairs(
    dmd: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    distill(tiny_config(straight, *dmd))
    distill_until_iteration_5(monkeypatch, tiny_config(resumed, "training.checkpoint_every=3", *dmd))
    distill(tiny_config(resumed, "training.checkpoint_every=3", "resume=auto", *dmd))
    assert_same_checkpoint(*(folder / "checkpoints" / "iteration_00000006" for folder in (straight, resumed)))
    losses = [
        [line.get("regression_loss") for line in read_log(folder / "log.jsonl")] for folder in (straight, resumed)
    ]
    assert losses[0] == losses[1] and len({loss for loss in losses[0] if loss is not None}) == 6


@pytest.mark.parametrize("of", [".", "checkpoints/iteration_00000006"])
def test_resuming_in_another_folder(of: str, finished_run: Path, tmp_path: Path) -> None:
    overrides = ("training.total_images=112", "evaluation.samples=16", f"resume={finished_run / of}")
    assert distill(tiny_config(tmp_path, *overrides))["images_seen"] == 112
    changed, trained = read_log(tmp_path / "log.jsonl")
    assert (changed["iteration"], changed["changed_settings"]) == (6, {"training.total_images": [96, 112]})
    assert trained["iteration"] == 7


def test_the_seed_decides_the_run(finished_run: Path, tmp_path: Path) -> None:
    distill(tiny_config(tmp_path, "seed=1", "evaluation.samples=16"))
    ours, theirs = (read_log(folder / "log.jsonl")[0] for folder in (tmp_path, finished_run))
    assert ours["fake_score_loss"] != theirs["fake_score_loss"]

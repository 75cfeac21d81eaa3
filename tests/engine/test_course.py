"""What a resumed run may change, and what it must have in common with its checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from onestep.build.distillation import distill
from onestep.build.pretraining import pretrain
from onestep.engine.course import Course, changes_since, course_of
from onestep.engine.log import read_log
from tests.helpers.configs import refused, tiny_config, tiny_pretraining

BRIEF = ("training.evaluate_every=100", "evaluation.samples=16", "evaluation.evaluate_teacher=false", "metrics=[fid]")


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run of six iterations, which may be resumed."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def saved(run: Path, iteration: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"iteration_{iteration:08d}" / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("overrides", "moves"),
    [
        (("optimizer.generator.lr=0", "optimizer.fake_score.lr=0", "training.warmup_images=1000"), False),
        (("optimizer.generator._target_=torch.optim.AdamW", "optimizer.fake_score.betas=[0.5,0.9]"), True),
    ],
)
def test_new_options_of_the_optimizers_are_used_and_logged(run: Path, overrides: tuple[str, ...], moves: bool) -> None:
    distill(tiny_config(run, "resume=auto", "training.total_images=112", *BRIEF, *overrides))
    for network in ("generator", "fake_score"):
        before, after = saved(run, 6, network), saved(run, 7, network)
        assert any(not torch.equal(value, after[key]) for key, value in before.items()) is moves
    (line,) = (line for line in read_log(run / "log.jsonl") if "changed_settings" in line)
    assert line["iteration"] == 6
    keys = [override.partition("=")[0] for override in overrides]
    assert sorted(line["changed_settings"]) == sorted([*keys, "training.total_images"])
    assert line["changed_settings"]["training.total_images"] == [96, 112]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("seed=5",), "seed: 0 -> 5"),
        (("training.batch_size=32",), "training.batch_size: 16 -> 32"),
        (("discriminator=shared_encoder",), "discriminator.head.features_from: teacher -> fake_score"),
        (("objective=uni_instruct",), "onestep.objectives.f_distill.FDistill -> "),
        (("objective=sid", "divergence=reverse_kl"), "onestep.objectives.f_distill.FDistill -> "),
        (("normalizer=null",), "normalizer"),
        (("normalizer.bins=5", "discriminator.head.hidden=32"), "hidden: 64 -> 32, normalizer.bins: 10 -> 5"),
        (("fake_score.steps=2",), "fake_score.steps: 1 -> 2"),
        (("teacher.guidance=1.5", "seed=1"), "seed: 0 -> 1, teacher.guidance: 1.0 -> 1.5"),
        (("sigma.sigma_max=40",), "sigma.sigma_max: "),
    ],
)
def test_another_course_is_refused_before_a_network_is_built(
    run: Path, overrides: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = (run / "config.yaml").read_text()
    monkeypatch.setattr("onestep.build.distillation.Parts.__getitem__", lambda *_: pytest.fail("a part was built"))
    said = refused(tiny_config(run, "resume=auto", "training.total_images=112", *overrides))
    assert said.startswith(f"cannot resume from {run}/checkpoints/iteration_00000006 with other settings: ")
    assert message in said and f"in another folder with generator.init={run}/generator" in said and "\n" not in said
    assert "total_images" not in said
    assert (run / "config.yaml").read_text() == record


def test_another_task_is_refused(run: Path) -> None:
    said = refused(tiny_pretraining(run, "resume=auto"), pretrain)
    assert "with other settings" in said and "more" in said and "\n" not in said


def test_other_data_or_another_teacher_of_the_same_settings_is_refused(run: Path) -> None:
    path = run / "checkpoints" / "iteration_00000006"
    course = json.loads((path / "course.json").read_text())
    assert course["parts"].keys() == {"data", "teacher.weights"}
    assert course["parts"]["data"] == "Digits, 1797 items of (1, 8, 8), 10 classes"
    others = course["parts"] | {"data": "Digits, 10 items of (1, 8, 8), 10 classes", "teacher.weights": "other"}
    with pytest.raises(ValueError, match=r"data: Digits, 1797 .* -> Digits, 10 .*, teacher.weights: .* -> other\. "):
        changes_since(path, Course(course["settings"], others))


SETTINGS: dict[str, Any] = {
    "seed": 1, "device": "cpu", "output": "a", "sampler": {"steps": 2}, "pairs": None, "choices": {"data": "digits"},
    "data": {"path": "a", "size": 2}, "optimizer": {"generator": {"lr": 0.1, "betas": [0.0, 0.9]}},
    "training": {"log_every": 1, "batch_size": 2, "total_images": 8},
}  # fmt: skip


def test_the_settings_of_a_course() -> None:
    assert course_of(SETTINGS) == {
        "seed": 1, "pairs": None, "data.path": "a", "data.size": 2, "optimizer.generator.lr": 0.1,
        "optimizer.generator.betas": [0.0, 0.9], "training.batch_size": 2, "training.total_images": 8,
    }  # fmt: skip
    assert course_of(SETTINGS | {"pairs": {"count": 3}}).items() >= {"pairs.count": 3, "sampler.steps": 2}.items()


def test_files_may_move(tmp_path: Path) -> None:
    course = course_of(SETTINGS)
    (tmp_path / "course.json").write_text(json.dumps({"settings": course}))
    assert changes_since(tmp_path, Course(course)) == {}
    assert changes_since(tmp_path, Course(course | {"data.path": "b"})) == {"data.path": ("a", "b")}

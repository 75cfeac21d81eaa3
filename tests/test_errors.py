"""What a user gets wrong is refused with the value and the way to mend it, and nothing is lost."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from safetensors.torch import load_file

from onestep.build.distillation import distill
from onestep.config import explain
from onestep.distillation import loop
from onestep.distillation.parts import Distillation
from onestep.engine.log import read_log
from tests.refusals import refused

REPOSITORY = Path(__file__).parents[1]
Compose = Callable[..., DictConfig]


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [sys.executable, str(REPOSITORY / script), *arguments],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip


# What Hydra reads, through the scripts: one line, no traceback.


@pytest.mark.parametrize(
    "script, arguments, expected",
    [
        ("train.py", ["training.imagez=3"], "unknown key 'training.imagez'; did you mean 'images'? The keys of train"),
        ("train.py", ["+imagez=3"], "unknown key 'imagez'. The keys of the configuration are: attention, channels_l"),
        ("train.py", ["generator.gan_weight=-1"], "generator.gan_weight must not be negative and "),
        ("train.py", ["discriminator=null"], "a group cannot be set to null: choose one of its options, such as disc"),
        ("sample.py", ["run=nowhere/at/all"], "run=nowhere/at/all: no config.yaml there; give the folder of a run"),
    ],
)
def test_a_mistake_ends_in_one_line(script: str, arguments: list[str], expected: str, tmp_path: Path) -> None:
    finished = run_script(script, *arguments, f"hydra.run.dir={tmp_path}", "device=cpu", "precision=no")
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert line.startswith(f"error: {expected}")
    assert "Traceback" not in finished.stdout


def composition_error(compose_config: Compose, *overrides: str) -> str:
    with pytest.raises(HydraException) as caught:
        compose_config("train", *overrides)
    return explain(caught.value)


def test_an_unknown_key_lists_the_valid_ones(compose_config: Compose) -> None:
    message = composition_error(compose_config, "training.imagez=3")
    assert message == (
        "unknown key 'training.imagez'; did you mean 'images'? The keys of training are: accumulation, batch_size, "
        "checkpoint_every, discriminator_weight, ema_halflife, ema_rampup, evaluate_every, fake_score_guidance, "
        "fake_score_steps, final_lr, fresh_latents, gan_weight, grad_clip, images, keep_last, later_sigmas, log_every, "
        "max_skipped_steps, regression_weight, rollback_lr_factor, rollbacks, sigma_init, warmup_images"
    )


def test_an_unknown_key_of_the_top_lists_the_valid_ones(compose_config: Compose) -> None:
    message = composition_error(compose_config, "sead=3")
    assert "unknown key 'sead'; did you mean 'seed'?" in message
    assert "precision" in message and "normalizer" in message


def test_an_added_key_that_nothing_takes_is_refused(train_config: Compose, tmp_path: Path) -> None:
    message = refused(train_config(tmp_path, "+training.foo=1"))
    assert message.startswith("unknown key 'training.foo'. The keys of training are: accumulation, ")
    message = refused(train_config(tmp_path, "+discriminator.hiden=3"))
    assert "unknown key 'discriminator.hiden'; did you mean 'hidden'?" in message


def test_an_unknown_choice_lists_the_options(compose_config: Compose) -> None:
    message = composition_error(compose_config, "objective=foo")
    assert "objective/foo" in message
    assert all(option in message for option in ("f_distill", "uni_instruct"))


def test_a_setting_without_a_value_is_named(train_config: Compose, tmp_path: Path) -> None:
    message = refused(train_config(tmp_path, "teacher=local"))
    assert message == "settings without a value: teacher.path; give each as KEY=VALUE"


def test_a_target_that_cannot_be_imported_is_named(train_config: Compose, tmp_path: Path) -> None:
    message = refused(train_config(tmp_path, "weighting._target_=onestep.nothing.Here"))
    assert "weighting._target_=onestep.nothing.Here cannot be imported" in message


@pytest.mark.parametrize(
    "override, expected",
    [
        ("generator.gan_weight=-0.5", "generator.gan_weight must not be negative and .* got -0.5 and "),
        ("generator.regression_weight=-0.5", "generator.regression_weight must not be negative, got -0.5"),
        ("discriminator.weight=0", "discriminator.weight must be positive, got .* and 0"),
        ("fake_score.steps=0", "fake_score.steps must be at least 1, got 0"),
        ("training.log_every=0", "training.log_every must be positive, got 0"),
        ("training.final_lr=1.5", r"training.final_lr is a share in \(0, 1\], got 1.5"),
        ("training.total_images=8", "training.total_images=8 is less than one batch of 16"),
        ("training.ema_halflife=0", "halflife > 0 .* got halflife=0"),
        ("evaluation.samples=0", "evaluation.samples must be positive, got 0"),
        ("sampler.steps=1", "steps >= 2.* got steps=1"),
        ("sigma.sigma_min=30", "expected 0 < sigma_min < sigma_max, got sigma_min=30"),
        ("normalizer.bins=0", "bins must be at least 1, got 0"),
        ("metrics.recall.k=0", "needs k >= 1 neighbours, got k=0"),
        ("discriminator.features_from=students", "features_from is 'teacher' or 'fake_score', got 'students'"),
        ("features.path=no/such/features", "no feature network at no/such/features: .*experiment=pretrain_digits_fea"),
        ("precision=fp8", "precision=fp8: choose one of auto, no, bf16"),
        ("resume=no/such/run", "resume=no/such/run: no checkpoint there; give a run's folder, a checkpoint's folder"),
    ],
)
def test_a_value_out_of_range(override: str, expected: str, train_config: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=expected):
        distill(train_config(tmp_path, override))


def test_resuming_a_run_without_checkpoints(train_config: Compose, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refused(train_config(tmp_path / "run", f"resume={tmp_path / 'empty'}"))
    assert message.startswith(f"resume={tmp_path / 'empty'}: no checkpoint there; give a run's folder, a checkpoint's ")


def test_resuming_a_run_with_other_networks(train_config: Compose, finished_run: Path, tmp_path: Path) -> None:
    message = refused(train_config(tmp_path, f"resume={finished_run}", "discriminator.head.hidden=32"))
    assert message.startswith(f"cannot resume from {finished_run / 'checkpoints' / 'iteration_00000006'}: ")
    assert "size mismatch" in message


def test_a_fresh_start_over_another_run(train_config: Compose, finished_run: Path) -> None:
    log = (finished_run / "log.jsonl").read_bytes()
    message = refused(train_config(finished_run))
    assert message.startswith(f"{finished_run} holds the checkpoints of another run: go on with it by resume=auto")
    assert (finished_run / "log.jsonl").read_bytes() == log


# Numbers that stop being numbers.


def poison_teacher(parts: Distillation) -> None:
    with torch.no_grad():
        next(parts.method.teacher.parameters()).fill_(torch.nan)


def poison_fake_score(parts: Distillation) -> None:
    assert parts.method.fake_score is not None
    with torch.no_grad():
        next(parts.method.fake_score.parameters()).fill_(torch.nan)


def poison_gradient(parts: Distillation) -> None:
    next(parts.student.parameters()).register_hook(lambda gradient: gradient * torch.inf)


@pytest.mark.parametrize(
    "step, poison, terms",
    [
        ("update_fake_score", poison_teacher, "'discriminator': nan"),
        ("update_fake_score", poison_fake_score, "'fake score': nan"),
        ("update_generator", poison_teacher, "'objective': nan"),
        ("update_generator", poison_gradient, "'gradient norm': (nan|inf)"),
    ],
)
def test_a_value_that_is_not_finite_stops_the_run(
    step: str,
    poison: Callable[[Distillation], None],
    terms: str,
    train_config: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[Distillation] = []
    take_step = getattr(loop, step)

    def poisoned(parts: Distillation, iteration: int, *inputs: Any) -> dict[str, torch.Tensor]:
        if iteration == 2:
            built.append(parts)
            poison(parts)
        return take_step(parts, iteration, *inputs)

    overrides = ("generator.gan_weight=0.1", "training.total_images=64", "evaluation.samples=16")
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=f"non-finite value in iteration 2: .*{terms}"):
        patch.setattr(loop, step, poisoned)
        distill(train_config(tmp_path, *overrides))

    checkpoints = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert checkpoints == ["iteration_00000001", "iteration_00000002"]
    files = sorted((tmp_path / "checkpoints" / checkpoints[-1]).glob("*.safetensors"))
    assert len(files) == 7  # four networks, the average, two optimisers
    saved = {file.stem: load_file(file) for file in files}
    assert all(value.isfinite().all() for tensors in saved.values() for value in tensors.values())
    # Nothing of the step was applied.
    generator = built[0].generator.state_dict()
    assert all(torch.equal(value, generator[key]) for key, value in saved["generator"].items())

    summary = distill(train_config(tmp_path, "resume=auto", *overrides))
    assert summary["images_seen"] == 64
    assert [line["iteration"] for line in read_log(tmp_path / "log.jsonl") if "loss" in line] == [1, 2, 3, 4]

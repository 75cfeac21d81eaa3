"""User errors are reported with the value and a remedy, and nothing is lost."""

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException
from safetensors.torch import load_file

from onestep.build.distillation import build_distillation, distill
from onestep.commands import main
from onestep.config import explain
from onestep.distillation import loop
from onestep.distillation.parts import Distillation
from onestep.engine.log import read_log
from onestep.engine.optimizer import SkippedStepError
from tests.helpers.configs import CPU, configure, refused, tiny_config
from tests.helpers.updates import take_updates

# Errors in Hydra's command line: one line without a traceback.


@pytest.mark.usefixtures("process_as_it_was")
@pytest.mark.parametrize(
    "command, argument, expected",
    [
        ("train", "training.total_imagez=3", "unknown key 'training.total_imagez'; did you mean 'total_images'? "),
        ("train", "+imagez=3", "unknown key 'imagez'. The keys of the configuration are: attention, augment, "),
        ("train", "teacher=null", "teacher=null: a choice is needed, one of diffusers, digits, edm2_imagenet512, "),
        (
            "train",
            "data=latents",
            "data.pipeline is that of teacher.pipeline, which this configuration does not",
        ),
        ("train", "generator.gan_weight=-1", "generator.gan_weight=-1: expected a number of at least 0 and at most "),
        ("sample", "run=nowhere/at/all", "run=nowhere/at/all: it has no config.yaml"),
    ],
)
def test_a_mistake_ends_in_one_line(
    command: str, argument: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", ["onestep"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as caught:
        main([command, argument, f"hydra.run.dir={tmp_path}", CPU, "precision=no"])
    (line,) = str(caught.value.code).splitlines()  # which Python prints, and ends with 1
    assert line.startswith(f"error: {expected}")
    printed = capfd.readouterr()
    assert printed.err == "" and "Traceback" not in printed.out


def composition_error(*overrides: str) -> str:
    with pytest.raises(HydraException) as caught:
        configure("train", *overrides)
    return explain(caught.value)


def test_an_unknown_key_lists_the_valid_ones() -> None:
    message = composition_error("training.total_imagez=3")
    assert message == (
        "unknown key 'training.total_imagez'; did you mean 'total_images'? The keys of training are: accumulation, "
        "batch_size, checkpoint_every, evaluate_every, final_lr, keep_last, log_every, max_skipped_steps, "
        "normalize_weights, rollback_lr_factor, rollbacks, total_images, warmup_images"
    )


def test_an_unknown_key_of_the_top_lists_the_valid_ones() -> None:
    message = composition_error("sead=3")
    assert "unknown key 'sead'; did you mean 'seed'?" in message
    assert "precision" in message and "normalizer" in message


def test_an_added_key_that_nothing_takes_is_refused(tmp_path: Path) -> None:
    message = refused(tiny_config(tmp_path, "+training.foo=1"))
    assert message.startswith("unknown key 'training.foo'. The keys of training are: accumulation, ")
    message = refused(tiny_config(tmp_path, "+discriminator.head.hiden=3"))
    assert "unknown key 'discriminator.head.hiden'; did you mean 'hidden'?" in message


def test_an_unknown_choice_lists_the_options() -> None:
    message = composition_error("objective=foo")
    assert message.startswith("unknown choice objective=foo. The choices are: adversarial, diff_instruct, ")
    assert all(option in message for option in ("f_distill", "uni_instruct"))


def test_a_setting_without_a_value_is_named(tmp_path: Path) -> None:
    message = refused(tiny_config(tmp_path, "teacher=local"))
    assert message == "settings without a value: teacher.path; give each as KEY=VALUE"


def test_a_target_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    message = refused(tiny_config(tmp_path, "weighting._target_=onestep.nothing.Here"))
    assert "weighting._target_=onestep.nothing.Here cannot be imported" in message


@pytest.mark.parametrize(
    "override, expected",
    [
        ("training.total_images=8", "training.total_images=8 .* training.batch_size=16"),
        ("sigma.sigma_min=30", "sigma: sigma_min=30.0, sigma_max=5.0: expected 0 < sigma_min < sigma_max"),
        ("fake_sigma.sigma_min=30", "fake_sigma: sigma_min=30.0, sigma_max=5.0: expected 0 < sigma_min < sigma_max"),
        ("features.path=no/such/features", "no feature network at no/such/features: .*onestep pretrain features"),
        ("precision=fp8", "precision=fp8: expected one of auto, no, bf16"),
        ("resume=no/such/run", "resume=no/such/run: no checkpoint there; give a run's folder, a checkpoint's folder"),
    ],
)
def test_a_value_out_of_range(override: str, expected: str, tmp_path: Path) -> None:
    assert re.search(expected, refused(tiny_config(tmp_path, override)))


def test_resuming_a_run_without_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refused(tiny_config(tmp_path / "run", f"resume={tmp_path / 'empty'}"))
    assert message.startswith(f"resume={tmp_path / 'empty'}: no checkpoint there; give a run's folder, a checkpoint's ")


def test_a_fresh_start_over_another_run(finished_run: Path) -> None:
    log = (finished_run / "log.jsonl").read_bytes()
    message = refused(tiny_config(finished_run))
    assert message.startswith(f"{finished_run} holds the checkpoints of another run: continue it with resume=auto")
    assert (finished_run / "log.jsonl").read_bytes() == log


# Non-finite numbers.


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
    "update, poison, term",
    [
        ("critics", poison_teacher, "discriminator"),
        ("critics", poison_fake_score, "fake score"),
        ("generator", poison_teacher, "objective"),
        ("generator", poison_gradient, "generator_gradient"),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing(
    update: str, poison: Callable[[Distillation], None], term: str, tmp_path: Path
) -> None:
    parts = build_distillation(tiny_config(tmp_path, "generator.gan_weight=0.1"))
    updates = take_updates(parts, iterations=2)
    next(updates), next(updates)
    if update == "generator":
        next(updates)
    poison(parts)
    networks = parts.trained_networks.values()
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    with pytest.raises(SkippedStepError) as skipped:
        next(updates)
    assert not math.isfinite(skipped.value.values[term])
    for network, state in zip(networks, before, strict=True):
        torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0, equal_nan=True)


def test_a_value_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    overrides = ("generator.gan_weight=0.1", "training.total_images=64", "evaluation.samples=16")
    parts = build_distillation(tiny_config(tmp_path, *overrides))
    factors = iter([1.0, 1.0, torch.inf])
    next(parts.student.parameters()).register_hook(lambda gradient: gradient * next(factors))
    with pytest.raises(ValueError, match="non-finite value in iteration 2: .*'generator_gradient': (nan|inf)"):
        loop.distill(parts)

    checkpoints = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert checkpoints == ["iteration_00000001", "iteration_00000002"]
    files = sorted((tmp_path / "checkpoints" / checkpoints[-1]).glob("*.safetensors"))
    assert {file.stem for file in files} == {
        "generator", "fake_score", "discriminator", "normalizer", "generator_ema",
        *(f"{name}.optimizer" for name in ("generator", "fake_score", "discriminator")),
    }  # fmt: skip
    saved = {file.stem: load_file(file) for file in files}
    assert all(value.isfinite().all() for tensors in saved.values() for value in tensors.values())
    # The step was skipped.
    generator = parts.student.state_dict()
    assert all(torch.equal(value, generator[key]) for key, value in saved["generator"].items())

    summary = distill(tiny_config(tmp_path, "resume=auto", *overrides))
    assert summary["images_seen"] == 64
    assert [line["iteration"] for line in read_log(tmp_path / "log.jsonl") if "loss" in line] == [1, 2, 3, 4]

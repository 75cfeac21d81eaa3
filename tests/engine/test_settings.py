"""Numbers that a run refuses, each named in the message."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from onestep.engine.settings import DistillationSettings, EvaluationSettings

Settings = Callable[..., DistillationSettings]


def test_cycles_and_shares(make_settings: Settings) -> None:
    settings = make_settings(total_images=1007, batch_size=24)
    assert settings.iterations == 41
    assert [settings.share_of(processes) for processes in (1, 2, 8)] == [24, 12, 3]


def test_batch_that_the_processes_do_not_divide(make_settings: Settings) -> None:
    message = r"training\.batch_size=10 cannot be divided among 4 processes: choose a multiple, such as 12$"
    with pytest.raises(ValueError, match=message):
        make_settings(batch_size=10).share_of(4)
    message = r"batch_size=10 cannot be divided among 2 processes and 3 rounds \(training\.accumulation\): .* as 12$"
    with pytest.raises(ValueError, match=message):
        make_settings(batch_size=10, accumulation=3).share_of(2)


@pytest.mark.parametrize(
    "name",
    [
        "total_images",
        "batch_size",
        "accumulation",
        "grad_clip",
        "log_every",
        "checkpoint_every",
        "evaluate_every",
        "keep_last",
        "max_skipped_steps",
    ],
)
def test_numbers_that_must_be_positive(make_settings: Settings, name: str) -> None:
    with pytest.raises(ValueError, match=rf"training\.{name} must be positive, got 0"):
        make_settings(**{name: 0})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"final_lr": 0.0}, r"training\.final_lr is a share in \(0, 1\], got 0\.0"),
        ({"final_lr": 1.5}, r"training\.final_lr is a share in \(0, 1\], got 1\.5"),
        ({"rollbacks": -1}, r"training\.rollbacks must not be negative, got -1"),
        ({"rollback_lr_factor": 0.0}, r"training\.rollback_lr_factor is a share in \(0, 1\], got 0\.0"),
        ({"total_images": 5}, r"training\.total_images=5 is less than one batch of 10"),
        ({"later_sigmas": 0.5}, r"later_sigmas=0\.5: expected a list of noise levels such as \[0\.5,0\.2\], or \[\]"),
        ({"later_sigmas": None}, r"later_sigmas=None: expected a list of noise levels"),
        ({"later_sigmas": ["low"]}, r"later_sigmas=\['low'\]: expected a list of noise levels"),
        ({"fake_score_steps": 0}, r"training\.fake_score_steps must be at least 1, got 0"),
        ({"gan_weight": -0.5}, r"gan_weight must not be negative .* got -0\.5 and 1\.0"),
        ({"regression_weight": -0.5}, r"training\.regression_weight must not be negative, got -0\.5"),
        ({"discriminator_weight": 0.0}, r"discriminator_weight must be positive, got 0\.0 and 0\.0"),
    ],
)
def test_numbers_out_of_range(make_settings: Settings, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_settings(**changes)


EVALUATION = EvaluationSettings(
    samples=10,
    seed_ranges=1,
    interim_samples=10,
    interim_metrics=None,
    best=None,
    evaluate_teacher=True,
    batch_size=5,
    grid=10,
)


@pytest.mark.parametrize("name", ["samples", "interim_samples", "batch_size", "grid", "seed_ranges"])
def test_evaluation_of_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=rf"evaluation\.{name} must be positive, got 0"):
        replace(EVALUATION, **{name: 0})  # type: ignore[arg-type] # all of these are numbers


def test_fewer_samples_than_processes() -> None:
    settings = replace(EVALUATION, interim_samples=8)
    settings.check_processes(8)
    with pytest.raises(ValueError, match=r"evaluation\.interim_samples=8: 9 processes have not one sample each"):
        settings.check_processes(9)

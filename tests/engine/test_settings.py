"""Settings out of range are rejected with their name and value."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from onestep.engine.settings import EvaluationSettings, TrainingSettings
from tests.helpers.updates import make_settings

Settings = Callable[..., TrainingSettings]


def test_iterations_and_images_of_each_process() -> None:
    settings = make_settings(total_images=1007, batch_size=24)
    assert settings.iterations == 41
    assert [settings.per_process(processes) for processes in (1, 2, 8)] == [24, 12, 3]


def test_batch_that_the_processes_do_not_divide() -> None:
    message = r"training\.batch_size=10 cannot be divided among 4 processes: choose a multiple, such as 12$"
    with pytest.raises(ValueError, match=message):
        make_settings(batch_size=10).per_process(4)
    message = (
        r"batch_size=10 cannot be divided among 2 processes and 3 micro-batches \(training\.accumulation\): .* as 12$"
    )
    with pytest.raises(ValueError, match=message):
        make_settings(batch_size=10, accumulation=3).per_process(2)


def test_a_training_of_less_than_one_batch() -> None:
    with pytest.raises(ValueError, match=r"training\.total_images=5 .*batch_size=10"):
        make_settings(total_images=5)


EVALUATION = EvaluationSettings(
    samples=10,
    seed_ranges=1,
    interim_samples=10,
    interim_metrics=None,
    interim_averages=None,
    best=None,
    evaluate_teacher=True,
    batch_size=5,
    grid=10,
)


def test_fewer_samples_than_processes() -> None:
    settings = replace(EVALUATION, interim_samples=8)
    settings.check_processes(8)
    with pytest.raises(ValueError, match=r"evaluation\.interim_samples=8: .* 9 processes"):
        settings.check_processes(9)

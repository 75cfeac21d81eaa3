"""Checks of a run's evaluations before it begins."""

from pathlib import Path

import pytest

from tests.helpers.configs import refused, tiny_config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("metrics=[fid]", "evaluation.samples=1"), "fid needs at least 2 samples, got 1"),
        (("metrics=[recall]", "evaluation.samples=3"), "recall needs at least 4 samples, got 3"),
        (("metrics=[recall]", "evaluation.interim_samples=3"), "recall needs at least 4 samples, got 3"),
        (("metrics=[prdc]", "evaluation.samples=5"), "prdc needs at least 6 samples, got 5"),
        (("metrics=[kid]", "evaluation.samples=1"), "kid needs at least 2 samples, got 1"),
    ],
)
def test_too_few_samples_for_a_metric(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in refused(tiny_config(tmp_path / "run", *overrides))
    assert not (tmp_path / "run" / "log.jsonl").exists()

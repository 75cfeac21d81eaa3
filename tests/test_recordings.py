"""The results of short trainings equal those recorded before the redesign."""

import json
from pathlib import Path

import pytest

from tests.helpers.recordings import CASES, RECORDINGS, measure, run_case

# Enough for every day are a preset of each kind of objective, and one case of two processes and of micro-batches.
SLOW = (
    "diff_instruct", "dmd_accumulation", "f_distill_accumulation", "f_distill_forward_kl", "f_distill_shared_encoder",
    "sida_separate", "sida_two_processes", "sim", "sid_lsg", "uni_instruct_published_gradient", "vsd",
)  # fmt: skip
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]


@pytest.mark.parametrize("name", NAMES)
def test_a_short_training_gives_what_was_recorded(name: str, tmp_path: Path) -> None:
    run_case(name, tmp_path)
    found, expected = measure(tmp_path / "run"), json.loads(RECORDINGS.read_text())[name]
    assert len(found["log"]) == len(expected["log"]) >= 1
    for ours, theirs in zip(found["log"], expected["log"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9)
    assert found["networks"].keys() == expected["networks"].keys() and expected["networks"]
    for network, values in expected["networks"].items():
        assert found["networks"][network] == pytest.approx(values, rel=1e-6, abs=1e-6 * values[0])

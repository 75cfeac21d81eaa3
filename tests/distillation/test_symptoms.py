"""Symptoms by constructed values, on both sides of each threshold; warnings of those that last."""

import math
import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from onestep.distillation.report import DistillationReport
from onestep.distillation.symptoms import SYMPTOMS, symptoms_of

#: The late values of a run of the digits.
HEALTHY = {
    **{f"log_ratio_size/{level}": 0.02 for level in ("0.05", "0.3", "1", "3")},
    **{f"effective_samples/{level}": 0.9 for level in ("0.05", "0.3", "1", "3")},
    "overfitting": 0.001, "overfitting_error": 0.001, "fake_score_lag": -0.01, "spread": 1.0, "diversity": 0.98,
}  # fmt: skip


def all_levels(name: str, value: float) -> dict[str, float]:
    return {key: value for key in HEALTHY if key.startswith(name)}


@pytest.mark.parametrize(
    "symptom, shown, not_shown, message",
    [
        ("critic_saturated", {"log_ratio_size/0.05": 33.0, "log_ratio_size/0.3": 10.1},
         {"log_ratio_size/0.05": 33.0}, r"\|log r\| are above 10 at the noise levels 0.05, 0.3,"),
        ("critic_saturated", all_levels("log_ratio_size", math.nan), all_levels("log_ratio_size", 9.9), "saturated"),
        ("critic_blind", all_levels("log_ratio_size", 0.0019), all_levels("log_ratio_size", 0.0019)
         | {"log_ratio_size/1": 0.003}, "below 0.002 at all noise levels"),
        ("critic_overfitted", {"overfitting": 0.06, "overfitting_error": 0.02},
         {"overfitting": 0.06, "overfitting_error": 0.04}, "0.06 nats above"),
        ("critic_overfitted", {"overfitting": 0.3}, {"overfitting": 0.04}, "over-fitted"),
        ("samples_contracting", {"spread": 0.59}, {"spread": 0.61}, "is 0.59 of the teacher's"),
        ("diversity_falling", {"diversity": 0.49}, {"diversity": 0.51}, "are 0.49 times as far"),
        ("few_effective_samples", {"effective_samples/1": 0.05, "effective_samples/3": 0.02},
         {"effective_samples/1": 0.11}, "2.0% of them are effective at the noise levels 1, 3:"),
        ("fake_score_lagging", {"fake_score_lag": 0.16}, {"fake_score_lag": 0.049}, "lower its loss by 16%"),
    ],
)  # fmt: skip
def test_each_threshold(symptom: str, shown: dict[str, float], not_shown: dict[str, float], message: str) -> None:
    found = symptoms_of(HEALTHY | shown)
    assert list(found) == [symptom]
    assert re.search(message, found[symptom])
    assert symptoms_of(HEALTHY | not_shown) == {}


def test_values_that_were_not_measured_are_no_symptoms() -> None:
    assert symptoms_of({}) == {} == symptoms_of({"spread": 1.0})
    assert len(SYMPTOMS) == 7


def recorded(*values: dict[str, float], last: int = 9) -> tuple[list[dict[str, Any]], list[str]]:
    """The logged values of diagnoses after the iterations 1, 2, ..., and the warnings."""
    lines: list[dict[str, Any]] = []
    settings = SimpleNamespace(iterations=last)
    report = DistillationReport.__new__(DistillationReport)
    report.run = SimpleNamespace(log=SimpleNamespace(write=lambda _, line: lines.append(line)))  # type: ignore[assignment]
    report.parts = SimpleNamespace(settings=settings)  # type: ignore[assignment]
    report._shown, report._named = set(), set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for iteration, one in enumerate(values, start=1):
            report._record(iteration, one)
    return lines, [str(warning.message).partition(":")[0] for warning in caught]


def test_a_symptom_that_lasts_is_named_once() -> None:
    """Again if it has been away. All are logged."""
    bad, good = HEALTHY | {"spread": 0.1}, HEALTHY
    lines, named = recorded(bad, bad, bad, good, bad, bad)
    assert named == ["after iteration 2", "after iteration 6"]
    assert [line.get("symptoms", []) for line in lines] == [["samples_contracting"]] * 3 + [[]] + [
        ["samples_contracting"]
    ] * 2
    assert lines[0]["diagnosis/spread"] == 0.1


@pytest.mark.parametrize("last, named", [(1, ["after iteration 1"]), (2, [])])
def test_the_last_diagnosis_names_every_symptom(last: int, named: list[str]) -> None:
    assert recorded(HEALTHY | {"spread": 0.1}, last=last)[1] == named

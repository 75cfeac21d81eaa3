"""The table at the end of a run."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from onestep.evaluation.evaluate import print_results
from onestep.metrics.result import Description
from onestep.reports.tables import descriptions_of, print_summary

TEN = {
    "fid": 12345.678, "fid50k": 1.234567, "is": 9.87654, "kid": 0.000123456, "precision": 0.711, "recall": 0.512,
    "density": 1.0321, "coverage": 0.9, "fd_dinov2": 101.5, "clip_score": 31.25,
}  # fmt: skip
SHOWN = ["12,346", "1.235", "9.877", "0.0001235", "0.711", "0.512", "1.032", "0.9", "101.5", "31.25"]
COSTS: dict[str, float] = {"network_evaluations": 1, "samples": 50000, "samples_per_second": 1234.5}
RECORDS: list[dict[str, Any]] = [
    {"metric": key, "title": f"the title of {key}", "higher_is_better": key in ("is", "recall")} for key in TEN
]


def rows_of(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The cells of each row, without the head."""
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[:1] == "│"]


@pytest.fixture(autouse=True)
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_ten_values_fit_into_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    student = TEN | COSTS
    teacher = {key: 2 * value for key, value in student.items()}
    summary = {"teacher": teacher, "student": student, "images_seen": 180000, "seconds": 59.6}
    print_summary(summary | {"results": {"student": RECORDS}}, Path("outputs/run"))
    rows = rows_of(capsys)
    assert [row[0] for row in rows[:10]] == [f"the title of {key}" for key in TEN]
    assert [row[2] for row in rows[:10]] == SHOWN
    assert rows[8] == ["the title of fd_dinov2", "203", "101.5"]
    assert rows[10:12] == [["network evaluations", "2", "1"], ["samples", "100,000", "50,000"]]
    assert rows[12:] == [["samples per second", "2469", "1234"]]


def test_a_side_that_was_not_evaluated_has_no_column(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"teacher": {"network_evaluations": 35}, "student": COSTS, "images_seen": 9, "seconds": 1.0}
    print_summary(summary | {"results": {}}, Path("outputs/run"))
    assert rows_of(capsys) == [["network evaluations", "1"], ["samples", "50,000"], ["samples per second", "1234"]]


@pytest.mark.parametrize(
    "symptoms, cell, line",
    [
        ([], "no symptoms", ""),
        (["critic_blind"], "1 symptom", "diagnosis: critic blind; see docs/diagnosis.md"),
        (["critic_blind", "samples_contracting"], "2 symptoms", "diagnosis: critic blind, samples contracting; see"),
    ],
)
def test_the_row_of_a_diagnosis(symptoms: list[str], cell: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"teacher": {}, "student": COSTS, "images_seen": 9, "seconds": 1.0, "results": {}}
    print_summary(summary | {"diagnosis": {"symptoms": symptoms, "spread": 1.0}}, Path("outputs/run"))
    text = capsys.readouterr().out
    assert f"{cell} " in next(row for row in text.splitlines() if "│ diagnosis " in row)
    assert line in text and ("symptoms of the last" in text) == bool(symptoms)


def test_descriptions_come_from_the_records() -> None:
    descriptions = descriptions_of({"results": {"teacher": RECORDS[:2], "student": RECORDS}})
    assert list(descriptions) == list(TEN)
    assert descriptions["recall"] == Description("the title of recall", higher_is_better=True)
    assert descriptions["kid"].heading == "the title of kid ↓" and descriptions["is"].heading == "the title of is ↑"


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_numbers_are_never_folded(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    values = {2.2737e-13: "0", -8.8818e-16: "0", -1.2346e-05: "-1.2346e-05", 317.21: "317.21", -1.5e-12: "-1.5e-12"}
    common = {
        "features": "inception-2015-12-05.pt",
        "reference": "a_long_name_of_a_folder, 50,000 images",
        "classes": None,
    }
    counts = {"samples": 50000, "seeds": [4294917296, 4294967295], "network_evaluations": 1000, "classes": None}
    print_results([{"title": "kernel distance (KID)", "value": value} | common | counts for value in values])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= int(columns) and "…" not in text
    lines = [line.strip("│").split("│") for line in text.splitlines() if line[:1] == "│"]
    assert [cell for line in lines if (cell := line[1].strip())] == list(values.values())
    words = [word for line in lines for word in line[2].replace(";", " ").split()]
    for number in ("50,000", "4294917296", "4294967295", "1000"):
        assert number in words
    summary = {"teacher": dict.fromkeys(TEN, -1.2346e-05) | COSTS, "student": COSTS, "images_seen": 9, "seconds": 1.0}
    print_summary(summary | {"results": {"teacher": RECORDS}}, Path("run"))
    assert capsys.readouterr().out.count("-1.235e-05") == len(TEN)


def test_names_are_no_markup_and_a_path_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    record = {"metric": "fid", "title": "F [/i]", "higher_is_better": False}
    summary = {"student": {"fid": 1.0} | COSTS, "images_seen": 1, "seconds": 1.0, "results": {"student": [record]}}
    print_summary(summary, Path("a [x]/b's"))
    shown = capsys.readouterr().out
    assert "F [/i]" in shown
    (words,) = (line for line in shown.splitlines() if line.startswith("files of this run: "))
    assert shlex.split(words)[-1] == "a [x]/b's"

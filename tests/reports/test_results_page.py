"""The results page of small runs: every number is that of the runs' files, and none is missing."""

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from onestep.build.distillation import distill
from onestep.build.pretraining import pretrain
from onestep.data.digits import Digits
from onestep.metrics.classifier import load_classifier
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.frechet import FrechetDistance
from onestep.models.generator import Generator
from onestep.reports.compare import generate
from onestep.reports.results_page import orderings, write_page
from onestep.reports.results_rows import Row, Rows, read_rows
from tests.helpers.configs import tiny_config, tiny_pretraining
from tests.helpers.paths import REPOSITORY

PLAN: dict[str, Any] = {
    "title": "Digits",
    "text": "Trained here.",
    "features": "features",
    "teacher": "teacher",
    "students": {"first": "f-distill", "second": "SiD"},
    "longer": {"long": "SiD, longer"},
    "papers": {
        "columns": ["A", "B"],
        "rows": [
            {"method": "teacher", "source": "0", "runs": ["teacher"], "fid": [1.0, 2.0]},
            {"method": "f-distill", "source": "1", "runs": ["first", "second"], "fid": [3.0, None]},
        ],
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, three students of it, and the summary of a classifier; read-only."""
    folder = tmp_path_factory.mktemp("runs")
    evaluated = ("metrics=[fid,prdc]", "evaluation.seed_ranges=2", "evaluation.interim_metrics=[fid]",
              "training.total_images=48", "training.checkpoint_every=3")  # fmt: skip
    pretrain(tiny_pretraining(folder / "teacher", *evaluated))
    from_it = (
        "experiment=digits",
        "teacher=local",
        f"teacher.path={folder / 'teacher' / 'teacher'}",
        "evaluation.evaluate_teacher=false",
    )
    for name, objective, images in (("first", "f_distill", 48), ("second", "sid", 48), ("long", "sid", 96)):
        own = (f"objective={objective}", f"training.total_images={images}")
        distill(tiny_config(folder / name, *evaluated, *from_it, *own))
    (folder / "features").mkdir()
    (folder / "features" / "summary.json").write_text('{"held_out_accuracy": 0.98765, "held_out_images": 359}')
    return folder


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of the page, without suffix."""
    output = tmp_path_factory.mktemp("docs") / "results"
    output.with_suffix(".yaml").write_text(OmegaConf.to_yaml(PLAN))
    write_page(runs, output, samples=4)
    return output


def cells(page: Path, title: str) -> list[str]:
    line = next(line for line in page.with_suffix(".md").read_text().splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_is_what_the_saved_generator_scores(runs: Path, page: Path) -> None:
    evaluator = Evaluator(load_classifier("digits"), {"fid": FrechetDistance()}, Digits())
    images = generate(Generator.from_pretrained(runs / "first" / "generator"), 64)
    fids = [evaluator([part])["fid"] for part in images.split(32)]
    row = cells(page, "f-distill")
    assert row[:3] == ["f-distill", "1", f"{fids[0]:.4g}"]
    assert row[5] == "48"  # three iterations of 16
    assert row[8:] == [f"{min(fids):.4g}", f"{max(fids):.4g}"]
    summary = json.loads((runs / "first" / "summary.json").read_text())
    assert row[3:5] == [f"{summary['student'][name]:.4g}" for name in ("precision", "recall")]
    assert summary["teacher"] == {"network_evaluations": 3}  # not evaluated again


def test_the_teachers_row_is_its_pretrainings(runs: Path, page: Path) -> None:
    summary = json.loads((runs / "teacher" / "summary.json").read_text())
    row = cells(page, "teacher")
    assert row[1:3] == ["3", f"{summary['teacher']['fid']:.4g}"]
    assert row[5] == f"{summary['images_seen']:,}"


def test_what_the_page_says_of_all(runs: Path, page: Path) -> None:
    text = page.with_suffix(".md").read_text()
    assert "Its accuracy on 359 held-out images is 98.77 %." in text
    assert "Metrics compare 32 samples with Digits, 1,797 images, in the features of the digits classifier" in text
    groups = [Row("", runs / name, json.loads((runs / name / "summary.json").read_text()), side).fids
              for name, side in (("teacher", "teacher"), ("first", "student"), ("second", "student"))]  # fmt: skip
    assert [len(group) for group in groups] == [2, 2, 2]
    pooled = (sum(statistics.variance(group) for group in groups) / 3) ** 0.5
    assert f"pooled over the rows, is {pooled:.2g}" in text
    best = min(groups[1][0], groups[2][0])
    assert f"has a FID of {best:.4g} with 1 evaluation" in text
    assert ("at or under its teacher's" in text) == (best <= groups[0][0])
    weights = load_file(runs / "first" / "generator" / "diffusion_pytorch_model.safetensors")
    trained = sum(value.numel() for name, value in weights.items() if name.endswith(("weight", "bias")))
    assert f"networks of {trained:,} parameters" in text


def test_a_student_that_was_trained_longer_has_a_table_of_its_own(runs: Path, page: Path) -> None:
    summary = json.loads((runs / "long" / "summary.json").read_text())
    row, fid = cells(page, "SiD, longer"), summary["student"]["fid"]
    assert (row[2], row[5]) == (f"{fid:.4g}", "96")
    text = page.with_suffix(".md").read_text().partition("## Trained longer")[2].partition("##")[0]
    on_the_way = [json.loads(line) for line in (runs / "long" / "log.jsonl").read_text().splitlines()]
    points = ", ".join(f"{line['fid']:.4g} ({line['images_seen']})" for line in on_the_way if "fid" in line)
    assert f"- SiD, longer: {points}\n" in text and "(96)" in points
    assert f"The best student in this table, SiD, longer, has a FID of {fid:.4g} with 1 evaluation" in text


def test_the_pictures(page: Path) -> None:
    samples = np.array(Image.open(page.with_name("results_samples.png")).convert("L"))
    assert samples.shape == (340, 1200)  # three panels of four
    assert samples[:, 900:].min() == 255 and all(samples[:, 300 * i : 300 * (i + 1)].std() > 20 for i in range(3))
    curves = np.array(Image.open(page.with_name("results_curves.png")).convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in curves.tolist()}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # a line for each student


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "second"), r"second: no finished run \(no summary.json\)"),
        (lambda folder: shutil.rmtree(folder / "features"), "features/summary.json: no such file"),
        (lambda folder: edit(folder / "second", "student", recall=None), "second: summary.json has no recall of"),
        (lambda folder: edit(folder / "second", images_seen=80), "second: it saw 80 images, .*first 48"),
        (lambda folder: edit(folder / "long", images_seen=48), "long: it saw 48 images, no more than the others' 48"),
        (lambda folder: edit_record(folder / "first", samples=31), "first: its FID is of .*31.*teacher's of .*32"),
        (lambda folder: (folder / "first" / "log.jsonl").write_text(""), "first: log.jsonl has no FID"),
    ],
)
def test_a_row_that_is_missing_ends_it(
    change: Callable[[Path], object], message: str, runs: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(runs, tmp_path / "runs", ignore=shutil.ignore_patterns("checkpoints"))
    change(copied)
    (tmp_path / "results.yaml").write_text(OmegaConf.to_yaml(PLAN))
    with pytest.raises(ValueError, match=message):
        write_page(copied, tmp_path / "results", samples=2)
    assert not (tmp_path / "results.md").exists()


def edit(run: Path, side: str | None = None, **values: Any) -> None:
    """Replace ``values`` in a summary; None deletes a key."""
    summary = json.loads((run / "summary.json").read_text())
    (summary if side is None else summary[side]).update(values)
    for name in [name for name, value in values.items() if value is None]:
        del (summary if side is None else summary[side])[name]
    (run / "summary.json").write_text(json.dumps(summary))


def edit_record(run: Path, **values: Any) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["results"]["student"][0].update(values)
    (run / "summary.json").write_text(json.dumps(summary))


def row_of(*fids: float) -> Row:
    records = [{"metric": "fid", "value": fid} for fid in fids]
    return Row("", Path(), {"student": {"fid": fids[0]}, "results": {"student": records}}, "student")


def test_the_orderings_are_computed() -> None:
    """Standard deviation 0.1: differences up to 0.28 are too close."""
    pair = 0.1 * 2**0.5
    rows = Rows({name: row_of(fid, fid + pair) for name, fid in {"a": 1.0, "b": 2.0, "c": 1.2, "d": 0.5}.items()})
    assert rows.spread == pytest.approx(0.1)
    papers = {
        "columns": ["one", "two"],
        "rows": [
            {"method": "A", "runs": ["a"], "fid": [1.0, 5.0]},
            {"method": "B", "runs": ["b", "d"], "fid": [2.0, 5.0]},
            {"method": "C", "runs": ["c"], "fid": [3.0, None]},
        ],
    }
    assert orderings(rows, papers) == [
        ("one", "A", "B", "no"),  # d, the better run of B, has 0.5
        ("one", "A", "C", "too close"),  # 1 and 1.2
        ("one", "B", "C", "yes"),
    ]


def test_one_range_has_no_spread() -> None:
    rows = Rows({"a": row_of(1.0), "b": row_of(1.1)})
    assert rows.spread is None
    papers = {"columns": ["one"], "rows": [{"method": m, "runs": [m], "fid": [f]} for m, f in (("a", 1.0), ("b", 2.0))]}
    assert orderings(rows, papers) == [("one", "a", "b", "yes")]


@pytest.mark.parametrize("values", [{"value": None}, {"samples": None}, {"samples": "many"}])
def test_a_record_without_a_number(values: dict[str, Any], runs: Path, tmp_path: Path) -> None:
    for run in ("teacher", "first", "second", "long"):
        (tmp_path / run).mkdir()
        shutil.copy(runs / run / "summary.json", tmp_path / run)
    edit_record(tmp_path / "first", **values)
    with pytest.raises(ValueError, match=r"first: summary\.json has a record of the student's FID without"):
        read_rows(tmp_path, PLAN)


def test_the_papers_name_rows_alone(runs: Path) -> None:
    papers = {"columns": [], "rows": [{"method": "DMD2", "runs": ["dmd2"], "fid": []}]}
    with pytest.raises(ValueError, match=r"papers\.rows: unknown runs dmd2"):
        read_rows(runs, PLAN | {"papers": papers})


def test_the_shipped_plan_is_whole() -> None:
    """Each column has a value or null for each method, and each of its runs is a row."""
    plan: dict[str, Any] = OmegaConf.to_container(  # type: ignore[assignment]
        OmegaConf.load(REPOSITORY / "docs" / "results.yaml")
    )
    assert len(plan["students"]) == 10
    assert len(plan["longer"]) == 1
    for row in plan["papers"]["rows"]:
        assert len(row["fid"]) == len(plan["papers"]["columns"]) == 3
        assert set(row["runs"]) <= {*plan["students"], plan["teacher"]}
        assert all(fid is None or 1 < fid < 5 for fid in row["fid"])


def test_a_page_that_is_not_described(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"results\.yaml: no such file"):
        write_page(runs, tmp_path / "results", samples=2)

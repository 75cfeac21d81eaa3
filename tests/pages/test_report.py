"""The page of a run: what it says of the run's files, and that nothing in them becomes markup."""

import base64
import importlib
import io
import json
import os
import shutil
import socket
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

import onestep
from onestep.commands import main
from onestep.engine.folder import locked
from onestep.engine.log import read_log
from onestep.pages.charts import chart, thinned
from onestep.pages.markup import picture
from onestep.pages.record import read_run
from onestep.pages.run import is_given, write_report
from onestep.reports.tables import format_value
from tests.helpers.hostile import bounded

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """The tags with their attributes, the texts, and the rows of the tables of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(path.read_text("utf-8"))
        self.close()
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, without its checkpoints."""
    return shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))


def page_of(run: Path) -> Page:
    write_report(run, run / "report.html")
    return Page(run / "report.html")


def test_a_run_ends_with_its_report(finished_run: Path) -> None:
    page, summary = Page(finished_run / "report.html"), json.loads((finished_run / "summary.json").read_text())
    assert page.open == [] and (finished_run / "report.html").stat().st_size < 300_000
    rows = {row[0]: row[1:] for row in page.rows}
    teacher, student = summary["teacher"], summary["student"]
    assert rows["FID ↓"] == [format_value(teacher["fid"]), format_value(student["fid"])]
    assert rows["network evaluations"] == [str(teacher["network_evaluations"]), "1"]
    assert rows["training.total_images"] == ["96"] and rows["torch"][0].startswith("2.")
    assert "Finished: 96 of 96 images seen, seed 0." in page.text
    assert f"The student's FID is {format_value(student['fid'])}" in page.text


def test_the_pictures_are_those_of_the_run(finished_run: Path) -> None:
    sources = [str(image["src"]) for image in Page(finished_run / "report.html").of("img")]
    contents = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
    names = ("teacher", "student", "iteration_00000003", "iteration_00000006")
    assert contents == [(finished_run / "samples" / f"{name}.png").read_bytes() for name in names]


def test_nothing_is_fetched_and_headings_descend(finished_run: Path) -> None:
    page = Page(finished_run / "report.html")
    for _, attributes in page.tags:
        assert all(str(attributes.get(name, "data:")).startswith("data:") for name in ("src", "href"))
    assert "http://" not in (text := (finished_run / "report.html").read_text()) and "https://" not in text
    assert [name for name, _ in page.tags if name in ("h1", "h2")][:2] == ["h1", "h2"]
    assert len(page.of("h1")) == 1
    labels = {label["for"] for label in page.of("label")}
    assert {slider["id"] for slider in page.of("input")} == labels == {"wipe", "time"}


def test_every_curve_of_the_log_is_drawn(finished_run: Path) -> None:
    keys = {key for line in read_log(finished_run / "log.jsonl") for key in line} - {"iteration", "images_seen"}
    labels = [str(svg.get("aria-label")) for svg in Page(finished_run / "report.html").of("svg")]
    assert len(labels) == len(keys)
    last = [line["fid"] for line in read_log(finished_run / "log.jsonl") if "fid" in line][-1]
    assert f"FID over images seen: the value ends at {format_value(last)}" in labels


def test_text_of_the_files_is_no_markup(run: Path) -> None:
    clean = [tag for tag, _ in page_of(run).tags]
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config + f"{json.dumps('evil' + EVIL)}: {json.dumps(EVIL)}\n")
    (run / "machine.json").write_text(json.dumps({"device" + EVIL: EVIL}))
    line = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps(line | {EVIL: 1.0}) + "\n")
    page = page_of(run)
    assert EVIL in page.text
    assert [tag for tag, _ in page.tags if tag in ("script", "img")] == [
        tag for tag in clean if tag in ("script", "img")
    ]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_hostile_numbers_and_many_names(run: Path) -> None:
    line: dict[str, Any] = {"iteration": 6, "images_seen": 96}
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps(line | {f"x{number}": number for number in range(500)} | {"loss": 1e299}) + "\n")
        log.write(json.dumps(line | {"loss": -1e299, "fid": None}) + "\n")
    with bounded():
        page = page_of(run)
    assert "further curves are in log.jsonl" in page.text


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "machine.json", "samples/teacher.png"])
def test_a_file_of_another_content_is_named(name: str, run: Path) -> None:
    (run / name).write_text("[1")
    with pytest.raises(ValueError, match=name):
        write_report(run, run / "new.html")
    assert not (run / "new.html").exists()


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the folder of a run that has started"):
        write_report(tmp_path, tmp_path / "report.html")


def test_the_state(run: Path) -> None:
    assert read_run(run).state == "finished"
    (run / ".lock").write_text(f"process {os.getppid()} on {socket.gethostname()}")
    assert read_run(run).state == "running"
    (run / ".lock").write_text(f"process 999999999 on {socket.gethostname()}")  # it was killed
    assert read_run(run).state == "finished"
    (run / "summary.json").unlink()
    assert read_run(run).state == "stopped"
    assert "Stopped before its end: 96 of 96 images seen" in page_of(run).text
    (run / ".lock").unlink()
    with locked(run):  # this process, at its end
        assert read_run(run).state == "stopped"


def test_a_summary_from_before_the_run_was_continued(run: Path) -> None:
    with (run / "log.jsonl").open("a") as log:
        log.write('{"iteration": 7, "images_seen": 112, "loss": 1.0}\n')
    record = read_run(run)
    assert (record.state, record.images_seen, record.summary) == ("stopped", 112, {})


def test_a_failure_is_said(run: Path) -> None:
    (run / "summary.json").unlink()
    write_report(run, run / "report.html", "It ended with: the disk is full")
    assert "It ended with: the disk is full" in Page(run / "report.html").text


@pytest.mark.parametrize("name", ["Scene", "SceneGenerator", "ColouredScene"])
def test_a_scene_is_read_by_its_class(name: str, run: Path) -> None:
    settings = importlib.import_module(getattr(onestep, name).__module__).SETTINGS
    (run / "generator" / "generator.json").rename(run / "generator" / settings)
    text = page_of(run).text
    assert f"onestep.{name}.from_pretrained" in text and "onestep.Generator" not in text


@pytest.mark.parametrize(
    ("record", "data", "expected", "other"),
    [
        ({"upscale_factor": 4.0}, "paired.PairedImages", "upscale photo.jpg", "export"),
        ({}, "prompts.PromptDataset", "diffusers.DiffusionPipeline.from_pretrained", "OneStepPipeline"),
        ({}, "digits.Digits", "onestep.OneStepPipeline.from_pretrained", "DiffusionPipeline"),
    ],
)
def test_how_a_student_is_used(record: dict[str, Any], data: str, expected: str, other: str, run: Path) -> None:
    """Super-resolution has no pipeline, and that of prompts is diffusers' own."""
    config = OmegaConf.load(run / "config.yaml")
    config.data = {"_target_": f"onestep.data.{data}"}
    OmegaConf.save(config, run / "config.yaml")
    settings = run / "generator" / "generator.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | record))
    use = page_of(run).text.split("Use it")[1].split("Configuration")[0]
    assert expected in use and other not in use


def test_what_the_user_set_is_marked() -> None:
    given = ["experiment", "sigma@fake_sigma", "training.total_images"]
    keys = ["choices.experiment", "fake_sigma.rho", "training.total_images", "training.total_images_x", "sigma.rho"]
    assert [is_given(key, given) for key in keys] == [True, True, True, False, False]


def test_a_symptom_is_said_in_words(run: Path) -> None:
    line = {"iteration": 6, "images_seen": 96, "diagnosis/spread": 0.3, "symptoms": ["samples_contracting"]}
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    assert "the standard deviation of samples of one condition is 0.30 of the teacher's" in page_of(run).text


def test_places_in_a_chart() -> None:
    (drawn,) = chart("loss", {"": [(0, 1.0), (50, 3.0), (100, 2.0)]}).iter("polyline")
    assert drawn.get("points") == "52.0,160.0 181.0,8.0 310.0,84.0"
    (drawn,) = chart("FID", {"": [(0, 1.0), (100, 100.0), (100, 10.0)]}, logarithmic=True).iter("polyline")
    assert drawn.get("points") == "52.0,160.0 310.0,8.0 310.0,84.0"


def test_a_run_has_one_colour_in_all_charts() -> None:
    figure = chart("loss", {"a": [], "b": [(0, 1.0), (50, 3.0)]})
    assert [line.get("class") for line in figure.iter("polyline")] == ["colour1 dash0"]
    assert [entry[0].tail for entry in figure.iter("li")] == ["b"]


def test_a_peak_survives_thinning() -> None:
    points = [(float(place), 9.0 if place == 777 else 0.0) for place in range(5000)]
    assert (777.0, 9.0) in thinned(points) and len(thinned(points)) <= 240


def test_a_large_picture_becomes_smaller(tmp_path: Path) -> None:
    Image.effect_noise((900, 900), 80).save(tmp_path / "noise.png")
    source = str(picture(tmp_path / "noise.png", "noise", 60_000).get("src"))
    content = base64.b64decode(source.removeprefix("data:image/webp;base64,"))
    assert len(content) <= 60_000 and Image.open(io.BytesIO(content)).width < 900


def test_the_page_of_several_runs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    config = (other / "config.yaml").read_text()
    assert "seed: 0\n" in config
    (other / "config.yaml").write_text(config.replace("seed: 0\n", "seed: 7\n", 1))
    (other / "summary.json").unlink()
    main(["compare", str(run), str(other), "-o", str(tmp_path / "page.html")])
    assert capsys.readouterr().out == f"written: {tmp_path / 'page.html'}\n"
    page, summary = Page(tmp_path / "page.html"), json.loads((run / "summary.json").read_text())
    rows = {row[0]: row[1:] for row in page.rows}
    assert format_value(summary["student"]["fid"]) in rows["run"]
    assert rows["other (stopped)"][-3:] == ["", "96", ""] and rows["seed"] == ["0", "7"]
    assert len(page.of("img")) == 2
    assert all("run ends at" in str(svg["aria-label"]) for svg in page.of("svg") if "aria-label" in svg)

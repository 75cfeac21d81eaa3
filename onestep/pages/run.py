"""The report of a run as a page: what was trained, how it stands, and how to go on."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from onestep.data.prompts import PromptDataset
from onestep.distillation.diagnosis import PREFIX
from onestep.distillation.report import count_evaluations, last_diagnosis
from onestep.distillation.symptoms import symptoms_of
from onestep.engine.records import select
from onestep.models import generator
from onestep.models.scene import coloured, scene
from onestep.models.scene import generator as scene_generator
from onestep.pages.charts import chart
from onestep.pages.markup import code, element, picture, section, table, write_page
from onestep.pages.record import RunRecord, read_run
from onestep.reading import one_line
from onestep.reports.tables import COSTS, evaluated_sides, format_value

#: The page's file in a run's folder.
REPORT = "report.html"
#: Bytes of a picture: a grid, one of those in time, one that a scene leaves.
_GRID, _FRAME, _PICTURE = 250_000, 64_000, 400_000
_FRAMES = 16
_CHARTS = 60
_EVENTS = ("iteration", "images_seen", "skipped_step", "samples", "rollback", "changed_settings", "symptoms")
#: The classes of students by the files of their settings.
_STUDENTS = {
    "Generator": generator.SETTINGS,
    "Scene": scene.SETTINGS,
    "SceneGenerator": scene_generator.SETTINGS,
    "ColouredScene": coloured.SETTINGS,
}
_OF_SCENE = {"turntable.gif": "The object on a turntable", "views.png": "Its views", "objects.png": "Its objects"}


def write_report(folder: Path, output: Path, failure: str | None = None) -> None:
    """Write the page of the run in ``folder``, finished or not, into the file ``output``.

    Args:
        folder: of the run, which is only read.
        output: the file.
        failure: why the run ended before it was finished, if that is known.

    Raises:
        ValueError: with the file, if ``folder`` holds no run, or a file in it cannot be read.
    """
    run = read_run(folder)
    title = title_of(run)
    parts = [
        element("h1", title),
        _state(run, failure),
        element("p", _verdict(run)),
        section("Results", _results(run)),
        section("Teacher and student, from the same seeds", _wipe(run)),
        section("Samples over time", _time(run)),
        section("The scene", _scene(run)),
        section("Diagnosis", _diagnosis(run)),
        section("Curves", curves({"": run})),
        section("Repeat it", *_repeat(run)),
        section("Use it", *_use(run)),
        section("Machine and versions", _machine(run)),
        section("Configuration", *_configuration(run)),
    ]
    write_page(f"{title}: report of a run", parts, output)


def title_of(run: RunRecord) -> str:
    """Method and recipe of a run, by the names of their choices."""
    names = [run.choice(group) for group in ("objective", "divergence")]
    recipe = run.choice("experiment") or run.choice("teacher") or run.choice("data")
    method = ", ".join(name for name in names if name) or "pretraining"
    return one_line(f"{method}: {recipe}" if recipe else method, 200)


def _state(run: RunRecord, failure: str | None) -> Element:
    total = f" of {run.total_images:,}" if run.total_images else ""
    seen = f"{run.images_seen:,}{total} images seen"
    seed = f"seed {format_value(value)}" if type(value := run.config.get("seed")) is int else "no seed recorded"
    if run.state == "finished":
        text = f"Finished: {seen}, {seed}."
    elif run.state == "running":
        text = f"Still running when this page was written: {seen}, {seed}."
    else:
        text = f"Stopped before its end: {seen}, {seed}."
    if failure:
        text += f" {one_line(failure, 500)}"
    return element("p", text, class_=f"state {run.state}")


def _verdict(run: RunRecord) -> str:
    """How the student stands beside its teacher, in a line."""
    teacher, student = run.summary.get("teacher"), run.summary.get("student")
    if not isinstance(teacher, dict):
        return "No final evaluation yet; the curves and samples are those of the training."
    cost = count_evaluations(teacher["network_evaluations"])
    if not isinstance(student, dict):
        return f"A teacher was trained, which samples in {cost} of its network."
    own = count_evaluations(student["network_evaluations"])
    text = f"The student samples in {own} of its network, its teacher in {cost}."
    for key, of in run.metrics.items():
        if key in teacher and key in student:
            better = "higher" if of.higher_is_better else "lower"
            values = f"{format_value(student[key])}, the teacher's {format_value(teacher[key])}"
            return f"{text} The student's {of.title} is {values} ({better} is better)."
    return text


def _results(run: RunRecord) -> Element | None:
    if not run.summary:
        return None
    if "results" not in run.summary:
        rows = [[key.replace("_", " "), format_value(value)] for key, value in run.summary.items()]
        return table("Values at the end of the training", ["", "value"], rows)
    sides = evaluated_sides(dict(run.summary))
    titles = {key: of.heading for key, of in run.metrics.items()} | {cost: cost.replace("_", " ") for cost in COSTS}
    rows = [
        [title, *(format_value(side[key]) if key in side else "" for side in sides.values())]
        for key, title in titles.items()
    ]
    seconds, skipped = run.summary["seconds"], run.summary.get("skipped_steps", 0)
    cost = f"{seconds:,.0f} s of training, {skipped:,} steps skipped. An arrow shows the better direction."
    return table(cost, ["", *sides], rows)


def _wipe(run: RunRecord) -> Element | None:
    """The teacher's and the student's grid, one over the other."""
    teacher, student = (run.folder / "samples" / f"{name}.png" for name in ("teacher", "student"))
    if run.state != "finished" or not (teacher.is_file() and student.is_file()):
        return None
    pictures = [
        picture(path, f"Samples of the {name}", _GRID, draggable="false")
        for name, path in (("teacher", teacher), ("student", student))
    ]
    return element(
        "div",
        element("div", *pictures, class_="layers"),
        element("div", element("span", "teacher"), element("span", "student"), class_="ends", aria_hidden="true"),
        element("label", "Left of the line the teacher's, right of it the student's", for_="wipe"),
        element("input", type="range", id="wipe", min="0", max="100", value="50"),
        class_="slider wipe",
    )


def _time(run: RunRecord) -> Element | None:
    """The grids of the training, one of which is shown."""
    frames = list(run.frames.items())
    if not frames:
        return None
    count = min(_FRAMES, len(frames))
    places = sorted({round(number * (len(frames) - 1) / max(1, count - 1)) for number in range(count)})
    batch = (run.config.get("training") or {}).get("batch_size") if isinstance(run.config.get("training"), dict) else 0
    images = []
    for place in places:
        iteration, path = frames[place]
        seen = f", {iteration * batch:,} images seen" if type(batch) is int and batch else ""
        images.append(picture(path, f"Samples after iteration {iteration:,}{seen}", _FRAME))
    last = len(images) - 1
    return element(
        "div",
        element("div", *images, class_="layers"),
        element("label", "Time: ", element("output", "", for_="time"), for_="time"),
        element("input", type="range", id="time", min="0", max=str(last), value=str(last)),
        class_="slider time",
    )


def _scene(run: RunRecord) -> Element | None:
    figures = [
        element("figure", element("figcaption", title), picture(run.folder / name, title, _PICTURE))
        for name, title in _OF_SCENE.items()
        if (run.folder / name).is_file()
    ]
    return element("div", *figures, class_="pictures") if figures else None


def _diagnosis(run: RunRecord) -> Element | None:
    """The symptoms of the last diagnosis in words."""
    found = last_diagnosis([dict(line) for line in run.lines])
    if found is None:
        return None
    values = {name: value for name, value in found.items() if name != "symptoms"}
    messages = list(symptoms_of(values).values())
    if not messages:
        return element("p", "The last diagnosis shows no known failure.")
    return element("ul", *(element("li", message, class_="warning") for message in messages), class_="warnings")


def curves(runs: Mapping[str, RunRecord]) -> Element | None:
    """All curves of ``runs`` by name: metrics, the training's, the diagnoses' by noise level if there is one run."""
    of_key: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, run in runs.items():
        for line in run.lines:
            for key, value in line.items():
                if key not in _EVENTS:
                    of_key.setdefault(key, {}).setdefault(name, []).append((line["images_seen"], value))
    metrics = {key: of for run in runs.values() for key, of in run.metrics.items()}
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for key in [*(key for key in metrics if key in of_key), *(key for key in of_key if key not in metrics)]:
        group, _, level = key.partition("/") if not key.startswith(PREFIX) else key.removeprefix(PREFIX).partition("/")
        of_one = len(runs) == 1 and key.startswith(PREFIX) and level
        panel = f"diagnosis: {group}, by noise level" if of_one else key.replace(PREFIX, "diagnosis: ")
        panels.setdefault(panel, {}).update(
            {level: of_key[key][""]} if of_one else {name: of_key[key].get(name, []) for name in runs}
        )
    charts = []
    for key, of_panel in list(panels.items())[:_CHARTS]:
        of = metrics.get(key)
        distance = of is not None and not of.higher_is_better
        charts.append(chart(one_line(of.title if of else key.replace("_", " ")), of_panel, distance))
    if not charts:
        return None
    left = len(panels) - len(charts)
    note = element("p", f"{left} further curves are in log.jsonl.") if left else None
    return element("div", element("div", *charts, class_="charts"), note)


def _repeat(run: RunRecord) -> Iterator[Element]:
    if run.command:
        yield code(shlex.join(run.command), "Command that repeats the run")
    else:
        yield element("p", "It was started from Python; the settings below are its arguments.")
    if run.state != "finished" and run.command:
        yield element("p", "It continues from its last checkpoint by:")
        words = [*run.command, "resume=auto", f"hydra.run.dir={run.folder}"]
        yield code(shlex.join(words), "Command that continues the run")


def _use(run: RunRecord) -> Iterator[Element]:
    folder = str(run.folder)
    kind = next((name for name, file in _STUDENTS.items() if (run.folder / "generator" / file).is_file()), None)
    if kind == "Generator":
        own = isinstance(run.config.get("teacher"), str)
        arguments = f"{folder + '/generator'!r}{', teacher' * own}"
        yield element("p", "In Python" + (", with the teacher that the run was given:" if own else ":"))
        yield code(f"import onestep\n\ngenerator = onestep.Generator.from_pretrained({arguments})", "Python")
        yield from () if own else _commands(run, folder)
    elif kind is not None:
        yield code(f"import onestep\n\nscene = onestep.{kind}.from_pretrained({folder + '/generator'!r})", "Python")
    elif (run.folder / "teacher").is_dir():
        words = ["onestep", "train", "teacher=local", f"teacher.path={folder}/teacher"]
        yield code(shlex.join(words), "Command that distills the teacher")


def _commands(run: RunRecord, folder: str) -> Iterator[Element]:
    restores = generator.read_generator_record(run.folder / "generator").upscale_factor is not None
    enlarge = ["upscale", "photo.jpg", f"checkpoint={folder}", "-o", "large.png"]
    other = ["onestep", *(enlarge if restores else ["export", folder, "new"])]
    sample = shlex.join(["onestep", "sample", f"run={folder}", "format=grid"])
    yield element("p", "On the command line, " + ("also for photographs:" if restores else "and as a pipeline:"))
    yield code(f"{sample}\n{shlex.join(other)}", "Commands of use")
    if not restores:
        prompts = select(dict(run.config), "data._target_") == f"{PromptDataset.__module__}.{PromptDataset.__name__}"
        pipeline = "diffusers.DiffusionPipeline" if prompts else "onestep.OneStepPipeline"
        yield code(f'pipeline = {pipeline}.from_pretrained("new")', "Python with diffusers")


def _machine(run: RunRecord) -> Element | None:
    rows = [[name, value] for name, value in run.machine.items()]
    return table("As recorded when the run started or was continued", ["", "value"], rows) if rows else None


def _configuration(run: RunRecord) -> Iterator[Element]:
    """All settings, and above them those that the user set."""
    values = {key: value for key, value in flat(run.config).items() if not key.startswith("given")}
    marks = [is_given(key, run.given) for key in values]
    rows = [[key, value] for key, value in values.items()]
    own = [row for row, mark in zip(rows, marks, strict=True) if mark]
    if own:
        yield _settings("Set by the user, beyond the recipe", own, ())
    else:
        yield element("p", "No setting differs from the recipe.")
    caption = "Every setting; those that the user set are marked"
    yield element("details", element("summary", "The whole configuration"), _settings(caption, rows, marks))


def _settings(caption: str, rows: Sequence[Sequence[str]], marks: Sequence[bool]) -> Element:
    whole = table(caption, ["setting", "value"], rows, marks)
    whole.set("class", "scroll settings")
    return whole


def is_given(key: str, given: Sequence[str]) -> bool:
    """True for a setting that the user set, or of a choice that he made: ``sigma@fake_sigma`` is of ``fake_sigma``."""
    places = [name.rpartition("@")[2] for name in given] + [f"choices.{name}" for name in given]
    return any(key == place or key.startswith(f"{place}.") for place in places)


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """The values of a nested mapping by their full keys, as texts of at most 500 characters."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = one_line("null" if value is None else value, 500)
    return found

"""Tables of a run's results, for the terminal and for Markdown pages."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

from annotated_types import Ge, Lt
from pydantic import AfterValidator, ConfigDict, FiniteFloat, NonNegativeInt
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typing_extensions import TypedDict

from onestep.metrics.result import Description
from onestep.reading import one_line, read_json

SIDES = ("teacher", "student")
#: Keys of a side of a summary in addition to its metrics.
COSTS = ("network_evaluations", "samples", "samples_per_second")


class Record(TypedDict):
    """The record of a value in ``summary.json``, a :class:`onestep.metrics.result.Result`."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc] # pydantic's way
    metric: str
    name: str
    value: FiniteFloat | None
    title: str
    higher_is_better: bool
    features: str
    reference: str


def _check_side(side: dict[str, Any]) -> dict[str, Any]:
    if type(side.get("network_evaluations")) is not int:
        raise ValueError("expected network_evaluations, an integer")
    return side


#: The values of the teacher or the student in ``summary.json`` by key; null is a value that is not finite.
Side = Annotated[dict[str, Annotated[int, Ge(-(2**63)), Lt(2**63)] | FiniteFloat | None], AfterValidator(_check_side)]


class Summary(TypedDict):
    """The content of ``summary.json`` of a distillation; that of a pretraining has no student.

    The student is the first average; ``averages`` are the others by name. ``views`` is the verdict on a scene, see
    :class:`onestep.evaluation.views.ViewsReport`.
    """

    teacher: Side
    student: NotRequired[Side]
    averages: NotRequired[dict[str, Side]]
    views: NotRequired[dict[str, dict[str, dict[str, FiniteFloat]]]]
    diagnosis: NotRequired[dict[str, FiniteFloat | list[str] | None]]
    images_seen: NonNegativeInt
    skipped_steps: NotRequired[NonNegativeInt]
    seconds: FiniteFloat
    results: dict[str, list[Record]]


def read_summary(run: Path) -> dict[str, Any]:
    """The ``summary.json`` of a finished run.

    Raises:
        ValueError: naming the file and the value, if there is none, or another content.
    """
    path = run / "summary.json"
    if not path.is_file():
        raise ValueError(f"{run}: no finished run (no summary.json); finish the run")
    return dict(read_json(path, Summary))


def descriptions_of(summary: dict[str, Any]) -> dict[str, Description]:
    """Title and direction by key of each value with a record in a run's ``summary``."""
    return {
        record["metric"]: Description(record["title"], record["higher_is_better"])
        for records in summary["results"].values()
        for record in records
    }


def evaluated_sides(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The values of what the run evaluated by its name: teacher, student, and further averages of the student."""
    sides = {name: summary.get(name, {}) for name in SIDES} | summary.get("averages", {})
    return {name: side for name, side in sides.items() if "samples" in side}


def format_value(value: float | None, digits: int = 4) -> str:
    """A float with ``digits``, larger ones and integers in full; "nan" for None, which a JSON file has in its place.

    A float within 1e-12 of 0 is 0: the rounding of a distance between equal sets.
    """
    if value is None:
        return "nan"
    if isinstance(value, int) or 10**digits <= abs(value) < 1e15:
        return f"{round(value):,}"
    return f"{0 if abs(value) < 1e-12 else value:.{digits}g}"


def to_cell(text: str) -> str:
    """A text as a cell of a Markdown table: one line without bars, of at most 200 characters."""
    return one_line(text, 200).replace("|", r"\|")


def to_markdown(rows: list[list[str]]) -> str:
    """A Markdown table of ``rows``, the first its head; all columns except the first are right-aligned."""
    ruled = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in ruled)


def _table_of_views(views: dict[str, dict[str, dict[str, float]]], title: str, cells: Mapping[str, str]) -> Table:
    """Values of a scene's views, and of others that have them, one class per row; ``cells`` has the format of each."""
    table = Table("view of class", title=title)
    having = {name: of for name, of in views.items() if all(cells.keys() <= one.keys() for one in of.values())}
    for name in having:
        table.add_column(name, justify="right", no_wrap=True)
    for label in views["student"]:
        found = [of[label] for of in having.values()]
        table.add_row(label, *(", ".join(format(one[key], cell) for key, cell in cells.items()) for one in found))
    return table


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print the summary of the run in ``folder``: one metric or cost per row, with columns for what it evaluated."""
    sides, descriptions = evaluated_sides(summary), descriptions_of(summary)
    skipped = f", {summary['skipped_steps']:,} steps skipped" if summary.get("skipped_steps") else ""
    table = Table("", title=f"{summary['images_seen']:,} images seen{skipped}, {summary['seconds']:.0f} s of training")
    for side in sides:
        table.add_column(side, justify="right", no_wrap=True)
    titles = {key: description.title for key, description in descriptions.items()}
    for key, title in (titles | {cost: cost.replace("_", " ") for cost in COSTS}).items():
        values = [side.get(key) for side in sides.values()]
        table.add_row(escape(title), *("" if value is None else format_value(value) for value in values))
    symptoms = [name.replace("_", " ") for name in summary.get("diagnosis", {}).get("symptoms", [])]
    if "diagnosis" in summary:
        count = f"{len(symptoms) or 'no'} symptom{'' if len(symptoms) == 1 else 's'}"
        table.add_row("diagnosis", *(count if side == "student" else "" for side in sides))
    Console().print(table)
    if views := summary.get("views"):
        title = "renders that the classifier names by their class, and its mean probability"
        Console().print(_table_of_views(views, title, {"accuracy": ".1%", "probability": ".2f"}))
        if "teacher" in views:
            title = "mean distance of two objects in a view: of pixels, of features"
            Console().print(_table_of_views(views, title, {"pixel_distance": ".3f", "feature_distance": ".2f"}))
    if symptoms:
        print(f"symptoms of the last diagnosis: {', '.join(symptoms)}; see docs/diagnosis.md")
    print(f"files of this run: {shlex.quote(str(folder))}")  # as one pastes it into a shell

"""Tables of a run's results, for the terminal and for Markdown pages."""

from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, FiniteFloat, NonNegativeInt
from rich.console import Console
from rich.table import Table
from typing_extensions import TypedDict

from onestep.metrics.result import Description
from onestep.reading import read_json

SIDES = ("teacher", "student")
#: Keys of a side of a summary in addition to its metrics.
COSTS = ("network_evaluations", "samples", "samples_per_second")


class Record(TypedDict):
    """The record of a value in ``summary.json``, a :class:`onestep.metrics.result.Result`."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc] # pydantic's way
    metric: str
    title: str
    higher_is_better: bool
    name: NotRequired[str]
    value: NotRequired[FiniteFloat | None]
    features: NotRequired[str]
    reference: NotRequired[str]


class Summary(TypedDict):
    """The content of ``summary.json`` of a distillation or a pretraining; null is a value that is not finite."""

    teacher: dict[str, int | FiniteFloat | None]
    student: NotRequired[dict[str, int | FiniteFloat | None]]
    images_seen: NonNegativeInt
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


def evaluated_sides(summary: dict[str, Any]) -> list[str]:
    """The sides that the run evaluated: teacher, student or both."""
    return [side for side in SIDES if "samples" in summary.get(side, {})]


def format_value(value: float) -> str:
    """A float with four digits; an integer in full, with commas."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def to_markdown(rows: list[list[str]]) -> str:
    """A Markdown table of ``rows``, the first its head; all columns except the first are right-aligned."""
    ruled = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in ruled)


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print the summary of the run in ``folder``: one metric or cost per row, with columns for teacher and student."""
    sides, descriptions = evaluated_sides(summary), descriptions_of(summary)
    table = Table("", title=f"{summary['images_seen']:,} images seen, {summary['seconds']:.0f} s of training")
    for side in sides:
        table.add_column(side, justify="right", no_wrap=True)
    titles = {key: description.title for key, description in descriptions.items()}
    for key, title in (titles | {cost: cost.replace("_", " ") for cost in COSTS}).items():
        table.add_row(title, *(format_value(summary[side][key]) if key in summary[side] else "" for side in sides))
    console = Console()
    console.print(table)
    console.print(f"files of this run: {folder}", soft_wrap=True)

"""Tables of what a run measured: on the terminal, and their parts for a page."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onestep.metrics.result import Description

SIDES = ("teacher", "student")
#: What a side of a summary holds beside its metrics.
COSTS = ("network_evaluations", "samples", "samples_per_second")


def descriptions_of(summary: dict[str, Any]) -> dict[str, Description]:
    """Title and direction of each value that a run's ``summary`` has a record of, by its key."""
    return {
        record["metric"]: Description(record["title"], record["higher_is_better"])
        for records in summary["results"].values()
        for record in records
    }


def evaluated_sides(summary: dict[str, Any]) -> list[str]:
    """Which of teacher and student were evaluated in the run."""
    return [side for side in SIDES if "samples" in summary.get(side, {})]


def format_value(value: float) -> str:
    """Four digits of a float; a count in full, with commas."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def to_markdown(rows: list[list[str]]) -> str:
    """A table of ``rows``, the first its head; all columns but the first are aligned to the right."""
    ruled = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in ruled)


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Show the summary of the run in ``folder`` as a table: a metric or cost a row, teacher and student its columns."""
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

"""Several runs on one page: their table, their samples and their curves."""

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from onestep.pages.markup import Child, element, picture, section, table, write_page
from onestep.pages.record import RunRecord, read_run
from onestep.pages.run import curves, flat
from onestep.reports.compare import read_runs
from onestep.reports.tables import format_value

_GRID = 200_000  # bytes of a picture
_OF_RECORD = ("output", "given", "choices")  # keys that differ without another training


def write_comparison(folders: Sequence[Path], output: Path) -> None:
    """Write the page of the runs in ``folders``, finished or not, into the file ``output``.

    Args:
        folders: of runs, or of sweeps, each of which stands for its finished runs.
        output: the file.

    Raises:
        ValueError: as :func:`onestep.pages.record.read_run` and :func:`onestep.reports.compare.read_runs`.
    """
    runs = {name: read_run(folder) for name, folder in named(folders).items()}
    title = f"Comparison of {len(runs)} runs"
    parts: list[Child] = [
        element("h1", title),
        section("Results", _results(runs)),
        section("Samples, from the same seeds", _samples(runs)),
        section("What differs in their settings", _differences(runs)),
        section("Curves", curves(runs)),
    ]
    write_page(title, parts, output)


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """The runs in ``folders`` by names: within a sweep what differs, else the part of the path that does."""
    found: dict[str, Path] = {}
    runs = [folder for folder in folders if (folder / "config.yaml").is_file()]
    common = Path(os.path.commonpath([run.absolute().parent for run in runs])) if runs else Path()
    for folder in folders:
        own = {str(folder.absolute().relative_to(common)): folder} if folder in runs else read_runs(folder)
        for name, run in own.items():
            found[name if name not in found else str(run)] = run
    return found


def _results(runs: dict[str, RunRecord]) -> Element:
    metrics = {key: of for run in runs.values() for key, of in run.metrics.items()}
    head = ["", *(of.heading for of in metrics.values()), "evaluations", "images seen", "seconds"]
    rows: list[list[str]] = []
    for name, run in runs.items():
        teacher, student = (run.summary.get(side, {}) for side in ("teacher", "student"))
        if teacher and not rows:
            values = [format_value(teacher[key]) if key in teacher else "" for key in metrics]
            rows.append(["teacher of the first", *values, str(teacher["network_evaluations"]), "", ""])
        values = [format_value(student[key]) if key in student else "" for key in metrics]
        cost = [str(student.get("network_evaluations", "")), f"{run.images_seen:,}"]
        seconds = f"{run.summary['seconds']:,.0f}" if "seconds" in run.summary else ""
        rows.append([name if run.state == "finished" else f"{name} ({run.state})", *values, *cost, seconds])
    return table("The students at the end of their trainings", head, rows)


def _samples(runs: dict[str, RunRecord]) -> Element | None:
    """The last grid of each student: seeds from 0 on in all of them."""
    figures = []
    for name, run in runs.items():
        last = run.folder / "samples" / "student.png"
        if run.state != "finished" or not last.is_file():
            last = next(reversed(run.frames.values()), last)
        if last.is_file():
            shown = picture(last, f"Samples of {name}", _GRID)
            figures.append(element("figure", element("figcaption", name), shown))
    return element("div", *figures, class_="pictures") if figures else None


def _differences(runs: dict[str, RunRecord]) -> Element | None:
    values = {name: flat(run.config) for name, run in runs.items()}
    keys = dict.fromkeys(key for of in values.values() for key in of)
    rows = [[key, *(of.get(key, "") for of in values.values())] for key in keys]
    rows = [row for row in rows if len({*row[1:]}) > 1 and row[0].partition(".")[0] not in _OF_RECORD]
    return table("Settings with more than one value", ["setting", *runs], rows) if rows else None

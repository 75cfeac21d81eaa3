"""The measurements of a page of runs, read from their files: the rows of :mod:`onestep.reports.results_page`."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onestep.engine.log import read_log

METRICS = ("fid", "precision", "recall")


@dataclass(frozen=True)
class Row:
    """A teacher or student with what its run measured.

    Args:
        title: how the table names it.
        folder: its run's.
        summary: that run's ``summary.json``.
        side: "teacher" or "student", whose figures these are.
    """

    title: str
    folder: Path
    summary: dict[str, Any]
    side: str

    @property
    def figures(self) -> dict[str, Any]:
        """Its metrics and their cost."""
        return self.summary[self.side]

    @property
    def fids(self) -> list[float]:
        """The FID of each range of seeds, the first first."""
        return [record["value"] for record in self.summary["results"][self.side] if record["metric"] == "fid"]

    @property
    def images_seen(self) -> int:
        """How many it was trained on."""
        return int(self.summary["images_seen"])

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Images seen and FID while it was trained.

        Raises:
            ValueError: if its log has no FID.
        """
        points = [(line["images_seen"], line["fid"]) for line in read_log(self.folder / "log.jsonl") if "fid" in line]
        if not points:
            raise ValueError(f"{self.folder}: log.jsonl has no FID, and the page has a curve for it")
        return points

    @property
    def protocol(self) -> dict[str, Any]:
        """What two FIDs must share to be compared."""
        record = next(record for record in self.summary["results"][self.side] if record["metric"] == "fid")
        return {name: record[name] for name in ("features", "reference", "samples")}


@dataclass(frozen=True)
class Rows:
    """All rows, by their runs' names.

    Args:
        rows: the teacher, which is the first, and students that saw equally many images.
        longer: students that saw more.
    """

    rows: dict[str, Row]
    longer: dict[str, Row] = field(default_factory=dict)

    @property
    def spread(self) -> float | None:
        """The standard deviation of a FID over ranges of seeds, pooled over ``rows``; None if none has several."""
        several = [row.fids for row in self.rows.values() if len(row.fids) > 1]
        if not several:
            return None
        squares = sum((fid - sum(fids) / len(fids)) ** 2 for fids in several for fid in fids)
        return math.sqrt(squares / sum(len(fids) - 1 for fids in several))

    def best_of(self, runs: list[str]) -> Row:
        """The one with the least FID."""
        return min((self.rows[run] for run in runs), key=lambda row: row.figures["fid"])


def read_rows(folder: Path, plan: dict[str, Any]) -> Rows:
    """The rows that ``plan`` names.

    Raises:
        ValueError: naming the run that is missing, lacks a figure, or is not comparable with the others.
    """
    teacher = _read_row(folder / plan["teacher"], "teacher", "teacher")
    students, longer = (
        {run: _read_row(folder / run, title, "student") for run, title in plan[group].items()}
        for group in ("students", "longer")
    )
    for row in (*students.values(), *longer.values()):
        if row.protocol != teacher.protocol:
            raise ValueError(f"{row.folder}: its FID is of {row.protocol}, the teacher's of {teacher.protocol}")
    first, *others = students.values()
    for row in others:
        if row.images_seen != first.images_seen:
            raise ValueError(
                f"{row.folder}: it saw {row.images_seen:,} images, {first.folder} {first.images_seen:,}: train them "
                "alike"
            )
    for row in longer.values():
        if row.images_seen <= first.images_seen:
            raise ValueError(
                f"{row.folder}: it saw {row.images_seen:,} images, no more than the others' {first.images_seen:,}"
            )
    rows = {plan["teacher"]: teacher} | students
    unknown = {run for paper in plan["papers"]["rows"] for run in paper["runs"]} - rows.keys()
    if unknown:
        raise ValueError(f"the papers' rows name runs that are no rows here: {', '.join(sorted(unknown))}")
    return Rows(rows, longer)


def _read_row(folder: Path, title: str, side: str) -> Row:
    row = Row(title, folder, read_summary(folder), side)
    lacking = [metric for metric in METRICS if metric not in row.summary.get(side, {})]
    if lacking:
        raise ValueError(f"{folder}: summary.json has no {', '.join(lacking)} of the {side}: evaluate it by them")
    return row


def read_summary(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself.

    Raises:
        ValueError: if it has not finished.
    """
    if not (folder / "summary.json").is_file():
        raise ValueError(f"{folder}: no finished run there (no summary.json), and the page has a row for it")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary

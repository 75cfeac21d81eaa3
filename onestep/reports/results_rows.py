"""The rows of :mod:`onestep.reports.results_page`: measured values from the runs' files."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onestep.engine.log import read_log
from onestep.reports.tables import read_summary

METRICS = ("fid", "precision", "recall")


@dataclass(frozen=True)
class Row:
    """A teacher or student with the measured values of its run.

    Args:
        title: its name in the table.
        folder: folder of the run.
        summary: the run's ``summary.json``.
        side: "teacher" or "student".
    """

    title: str
    folder: Path
    summary: dict[str, Any]
    side: str

    @property
    def values(self) -> dict[str, Any]:
        """Metrics and costs by key."""
        return self.summary[self.side]

    @property
    def fids(self) -> list[float]:
        """The FID of each range of seeds, in order."""
        return [record["value"] for record in self.summary["results"][self.side] if record["metric"] == "fid"]

    @property
    def images_seen(self) -> int:
        """Length of the training in images."""
        return int(self.summary["images_seen"])

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Images seen and FID during training.

        Raises:
            ValueError: if the log has no FID.
        """
        points = [(line["images_seen"], line["fid"]) for line in read_log(self.folder / "log.jsonl") if "fid" in line]
        if not points:
            raise ValueError(f"{self.folder}: log.jsonl has no FID for the curve; evaluate it during the training")
        return points

    @property
    def protocol(self) -> dict[str, Any]:
        """The features, reference and number of samples of the FID; comparable FIDs have equal protocols."""
        records = self.summary["results"].get(self.side, [])
        record: dict[str, Any] = next((record for record in records if record["metric"] == "fid"), {})
        return {name: record.get(name) for name in ("features", "reference", "samples")}


@dataclass(frozen=True)
class Rows:
    """All rows, by the names of their runs.

    Args:
        rows: the teacher first, then students that saw equally many images.
        longer: students that saw more images.
    """

    rows: dict[str, Row]
    longer: dict[str, Row] = field(default_factory=dict)

    @property
    def spread(self) -> float | None:
        """The standard deviation of a FID over seed ranges, pooled over ``rows``; None if each row has one range."""
        several = [row.fids for row in self.rows.values() if len(row.fids) > 1]
        if not several:
            return None
        squares = sum((fid - sum(fids) / len(fids)) ** 2 for fids in several for fid in fids)
        return math.sqrt(squares / sum(len(fids) - 1 for fids in several))

    def best_of(self, runs: list[str]) -> Row:
        """The row with the lowest FID among ``runs``."""
        return min((self.rows[run] for run in runs), key=lambda row: row.values["fid"])


def read_rows(folder: Path, plan: dict[str, Any]) -> Rows:
    """The rows that ``plan`` names.

    Raises:
        ValueError: for a run that is missing, lacks a metric, or is not comparable with the others.
    """
    teacher = _read_row(folder / plan["teacher"], "teacher", "teacher")
    students, longer = (
        {run: _read_row(folder / run, title, "student") for run, title in plan[group].items()}
        for group in ("students", "longer")
    )
    for row in (*students.values(), *longer.values()):
        if row.protocol != teacher.protocol:
            raise ValueError(
                f"{row.folder}: its FID is of {row.protocol}, the teacher's of {teacher.protocol}: evaluate both alike"
            )
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
        raise ValueError(f"papers.rows: unknown runs {', '.join(sorted(unknown))}, expected one of {', '.join(rows)}")
    return Rows(rows, longer)


def _read_row(folder: Path, title: str, side: str) -> Row:
    row = Row(title, folder, read_summary(folder), side)
    values = row.summary.get(side, {})
    lacking = [metric for metric in (*METRICS, "samples_per_second") if values.get(metric) is None]
    if lacking:
        raise ValueError(f"{folder}: summary.json has no {', '.join(lacking)} of the {side}: evaluate these metrics")
    if not isinstance(row.protocol["samples"], int) or None in row.fids:
        raise ValueError(f"{folder}: summary.json has a record of the {side}'s FID without a value or samples")
    return row

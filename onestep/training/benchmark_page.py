"""A folder of runs as a page with a table, curves and samples, beside the papers' figures.

``python -m onestep.training.benchmark_page outputs/fashion docs/benchmark`` reads which runs are compared, and what the
papers say, from ``docs/benchmark.yaml``; all else from the files that the runs wrote. A run that is missing, unfinished
or not comparable with the others ends it with the run's name: there is no page with a row less.
"""

import argparse
import json
import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor

from onestep.networks.generator import Generator, load_denoiser
from onestep.samplers import HeunSampler
from onestep.seeding import seeded_inputs
from onestep.training.compare import draw, save_panels, to_markdown
from onestep.training.log import read_log

_METRICS = ("fid", "precision", "recall")


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
        return [record["value"] for record in self.summary["figures"][self.side] if record["metric"] == "fid"]

    @property
    def protocol(self) -> dict[str, Any]:
        """What two FIDs must share to be compared."""
        record = next(record for record in self.summary["figures"][self.side] if record["metric"] == "fid")
        return {name: record[name] for name in ("features", "reference", "samples")}


@dataclass(frozen=True)
class Rows:
    """All rows, by their runs' names; the teacher is the first."""

    rows: dict[str, Row]

    @property
    def spread(self) -> float | None:
        """The standard deviation of a FID over ranges of seeds, pooled over the rows with several; None if none."""
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
    titles = {plan["teacher"]: "teacher"} | plan["students"]
    rows = {}
    for run, title in titles.items():
        side = "teacher" if run == plan["teacher"] else "student"
        rows[run] = Row(title, folder / run, _read_summary(folder / run), side)
        lacking = [metric for metric in _METRICS if metric not in rows[run].summary.get(side, {})]
        if lacking:
            raise ValueError(
                f"{folder / run}: summary.json has no {', '.join(lacking)} of the {side}: score it by them"
            )
    teacher, *students = rows.values()
    for row in students:
        if row.protocol != teacher.protocol:
            raise ValueError(f"{row.folder}: its FID is of {row.protocol}, the teacher's of {teacher.protocol}")
        seen, others = row.summary["images_seen"], students[0].summary["images_seen"]
        if seen != others:
            raise ValueError(f"{row.folder}: it saw {seen:,} images, {students[0].folder} {others:,}: train them alike")
    unknown = {run for paper in plan["papers"]["rows"] for run in paper["runs"]} - rows.keys()
    if unknown:
        raise ValueError(f"the papers' rows name runs that are no rows here: {', '.join(sorted(unknown))}")
    return Rows(rows)


def _read_summary(folder: Path) -> dict[str, Any]:
    if not (folder / "summary.json").is_file():
        raise ValueError(f"{folder}: no finished run there (no summary.json), and the page has a row for it")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def to_page(rows: Rows, features: dict[str, Any], plan: dict[str, Any], name: str) -> str:
    """The page in Markdown; its pictures are ``{name}_curves.png`` and ``{name}_samples.png``."""
    teacher, *students = rows.rows.values()
    best = min(students, key=lambda row: row.figures["fid"])
    verdict = "at or under" if best.figures["fid"] <= teacher.figures["fid"] else "above"
    protocol, spread = teacher.protocol, rows.spread
    parameters = sum(value.numel() for value in load_denoiser(teacher.folder / "teacher").parameters())
    paragraphs = [
        f"# {plan['title']}",
        plan["text"].strip(),
        f"Teacher and students are networks of {parameters:,} parameters. Figures are of {protocol['samples']:,} "
        f"samples against {protocol['reference']}, in the features of the {protocol['features']}, whose accuracy on "
        f"{features['held_out_images']:,} held-out images is {100 * features['held_out_accuracy']:.2f} %.",
        _table(rows),
        f"The best student, {best.title}, has a FID of {best.figures['fid']:.4g} with "
        f"{best.figures['network_evaluations']} evaluation, {verdict} its teacher's {teacher.figures['fid']:.4g} with "
        f"{teacher.figures['network_evaluations']}.",
        "The spread of a FID over ranges of seeds was not measured."
        if spread is None
        else f"**What a difference means.** The columns on the right are the least and the largest FID of the same "
        f"network over disjoint ranges of seeds. Their standard deviation, pooled over the rows, is {spread:.2g}: two "
        f"figures that differ by less than {_resolution(spread):.2g} (twice that of a difference) do not differ. Each "
        "row is one training; how much another seed of the training changes is not in it.",
        f"![FID against images seen]({name}_curves.png)",
        f"![Samples of the same seeds]({name}_samples.png)",
        "## The papers' figures",
        _papers_table(plan["papers"]),
        "Which of their orderings reappear, of all pairs that a column ranks:",
        _orderings_table(rows, plan["papers"]),
    ]
    return "\n\n".join(paragraph.rstrip("\n") for paragraph in paragraphs) + "\n"


def _table(rows: Rows) -> str:
    head = ["", "evaluations", "FID", "precision", "recall", "images seen", "seconds", "samples/s", "least", "largest"]
    body = []
    for row in rows.rows.values():
        figures, summary, speed = row.figures, row.summary, row.figures["samples_per_second"]
        ranges = [f"{min(row.fids):.4g}", f"{max(row.fids):.4g}"] if len(row.fids) > 1 else ["", ""]
        body.append([
            row.title, str(figures["network_evaluations"]), *(f"{figures[metric]:.4g}" for metric in _METRICS),
            f"{summary['images_seen']:,}", f"{summary['seconds']:,.0f}", f"{speed:,.0f}", *ranges,
        ])  # fmt: skip
    return to_markdown([head, *body])


def _papers_table(papers: dict[str, Any]) -> str:
    body = [
        [row["method"], row["source"], *("" if fid is None else f"{fid:.2f}" for fid in row["fid"])]
        for row in papers["rows"]
    ]
    return to_markdown([["method", "arXiv", *papers["columns"]], *body])


def orderings(rows: Rows, papers: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What each column of the papers ranks and how it is here: column, better, worse, and the verdict.

    The verdict is "yes", "no", or "too close" where our two figures differ by less than the spread resolves.
    """
    found = []
    close = 0.0 if rows.spread is None else _resolution(rows.spread)
    for index, column in enumerate(papers["columns"]):
        ranked = [row for row in papers["rows"] if row["fid"][index] is not None]
        for pair in combinations(ranked, 2):
            if pair[0]["fid"][index] == pair[1]["fid"][index]:
                continue
            better, worse = sorted(pair, key=lambda row: row["fid"][index])
            ahead = rows.best_of(worse["runs"]).figures["fid"] - rows.best_of(better["runs"]).figures["fid"]
            verdict = "too close" if abs(ahead) < close else "yes" if ahead > 0 else "no"
            found.append((column, better["method"], worse["method"], verdict))
    return found


def _orderings_table(rows: Rows, papers: dict[str, Any]) -> str:
    return to_markdown([["column", "better", "worse", "so here"], *(list(line) for line in orderings(rows, papers))])


def _resolution(spread: float) -> float:
    """Twice the standard deviation of the difference of two figures."""
    return 2 * math.sqrt(2) * spread


def save_fid_curves(rows: Rows, path: Path) -> None:
    """Plot each student's FID against the images it had seen, and the teacher's as a line.

    Raises:
        ValueError: naming the run whose log has no FID.
    """
    teacher, *students = rows.rows.values()
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axis = figure.subplots()
    for row in students:
        points = [(line["images_seen"], line["fid"]) for line in read_log(row.folder / "log.jsonl") if "fid" in line]
        if not points:
            raise ValueError(f"{row.folder}: log.jsonl has no FID, and the curves have a line for it")
        axis.plot(*zip(*points, strict=True), marker=".", label=row.title)
    axis.axhline(teacher.figures["fid"], color="black", linestyle="--", label="teacher")
    axis.set_xlabel("images seen")
    axis.set_ylabel("FID")
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def draw_samples(row: Row, count: int) -> Tensor:
    """Images [count, C, H, W] of the seeds 0, 1, ... from a row's network."""
    if row.side == "student":
        return draw(Generator.from_pretrained(row.folder / "generator"), count)
    teacher = load_denoiser(row.folder / "teacher").requires_grad_(False)
    options = OmegaConf.to_container(OmegaConf.load(row.folder / "config.yaml").sampler)
    assert isinstance(options, dict)
    sampler = HeunSampler(**{str(name): value for name, value in options.items() if not str(name).startswith("_")})
    return sampler(teacher, *seeded_inputs(list(range(count)), teacher.image_shape, teacher.label_dim))


def write_page(folder: Path, output: Path, samples: int) -> None:
    """Write ``output`` with the endings ``.md``, ``_curves.png`` and ``_samples.png``.

    Raises:
        ValueError: see :func:`read_rows` and :func:`save_fid_curves`.
    """
    described = output.with_name(f"{output.name}.yaml")
    if not described.is_file():
        raise ValueError(f"{described}: no such file; it says which runs are compared")
    plan: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(described))  # type: ignore[assignment]
    rows, features = read_rows(folder, plan), _read_summary(folder / plan["features"])
    page = to_page(rows, features, plan, output.name)
    save_fid_curves(rows, output.with_name(f"{output.name}_curves.png"))
    panels = {row.title: draw_samples(row, samples) for row in rows.rows.values()}
    save_panels(panels, output.with_name(f"{output.name}_samples.png"))
    output.with_name(f"{output.name}.md").write_text(page)


def main() -> None:
    """Read the command line and write the page."""
    parser = argparse.ArgumentParser(
        "python -m onestep.training.benchmark_page", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("folder", type=Path, help="the folder of the runs, such as outputs/fashion")
    parser.add_argument("output", type=Path, help="OUTPUT.yaml is read; OUTPUT.md and OUTPUT_*.png are written")
    parser.add_argument("--samples", type=int, default=25, help="images in a panel")
    arguments = parser.parse_args()
    try:
        write_page(arguments.folder, arguments.output, arguments.samples)
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()

"""A results page of the runs in a folder: table, curves and samples, with the papers' values.

``python -m onestep.reports.results_page outputs/fashion docs/results`` reads the list of runs and the papers' values
from ``docs/results.yaml``, and everything else from the runs' files. A missing, unfinished or incomparable run is an
error that names the run. Rows are never left out.
"""

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from onestep.engine.records import read_record
from onestep.files import write_text
from onestep.models.generator import Generator, load_denoiser
from onestep.ranges import Fraction, NonNegativeInt
from onestep.reading import read_json, read_yaml
from onestep.reports.compare import generate, save_panels
from onestep.reports.plots import save_figure
from onestep.reports.results_rows import METRICS, Row, Rows, read_rows
from onestep.reports.tables import to_markdown
from onestep.samplers import HeunSampler
from onestep.seeding import seeded_inputs


@dataclass(frozen=True)
class OfFeatures:
    """What the page says of a feature network: two entries of its ``summary.json``."""

    held_out_images: NonNegativeInt
    held_out_accuracy: Fraction


def to_page(rows: Rows, features: OfFeatures, plan: dict[str, Any], name: str) -> str:
    """The page in Markdown; its images are ``{name}_curves.png`` and ``{name}_samples.png``."""
    teacher, *students = rows.rows.values()
    protocol, spread = teacher.protocol, rows.spread
    parameters = sum(value.numel() for value in load_denoiser(teacher.folder / "teacher").parameters())
    paragraphs = [
        f"# {plan['title']}",
        plan["text"].strip(),
        f"Teacher and students are networks of {parameters:,} parameters. Metrics compare {protocol['samples']:,} "
        f"samples with {protocol['reference']}, in the features of the {protocol['features']}. Its accuracy on "
        f"{features.held_out_images:,} held-out images is {100 * features.held_out_accuracy:.2f} %.",
        _table(rows.rows.values()),
        _verdict(students, teacher),
        "The spread of a FID over ranges of seeds was not measured."
        if spread is None
        else f"**Significance.** The columns on the right are the least and the largest FID of the same network over "
        f"disjoint ranges of seeds. Their standard deviation, pooled over the rows, is {spread:.2g}. Differences below "
        f"{_resolution(spread):.2g}, twice the standard deviation of a difference, are not significant. Each row is "
        "one training run; the variation over training seeds is not included.",
        f"![FID against images seen]({name}_curves.png)",
        f"![Samples of the same seeds]({name}_samples.png)",
        *_longer_section(rows),
        "## The papers' values",
        _papers_table(plan["papers"]),
        "Reproduced orderings, for all pairs of methods in a column:",
        _orderings_table(rows, plan["papers"]),
    ]
    return "\n\n".join(paragraph.rstrip("\n") for paragraph in paragraphs) + "\n"


def _verdict(students: Iterable[Row], teacher: Row) -> str:
    best = min(students, key=lambda row: row.values["fid"])
    verdict = "at or under" if best.values["fid"] <= teacher.values["fid"] else "above"
    return (
        f"The best student in this table, {best.title}, has a FID of {best.values['fid']:.4g} with "
        f"{best.values['network_evaluations']} evaluation, {verdict} its teacher's {teacher.values['fid']:.4g} with "
        f"{teacher.values['network_evaluations']}."
    )


def _longer_section(rows: Rows) -> list[str]:
    """A section on the students that saw more images, with their FIDs during training; empty without any."""
    if not rows.longer:
        return []
    teacher = next(iter(rows.rows.values()))
    curves = [
        f"- {row.title}: " + ", ".join(f"{fid:.4g} ({images:,})" for images, fid in row.curve)
        for row in rows.longer.values()
    ]
    return [
        "## Trained longer",
        "Students that saw more images than those above.",
        _table(rows.longer.values()),
        _verdict(rows.longer.values(), teacher),
        "FID during training, with images seen in parentheses:\n\n" + "\n".join(curves),
    ]


def _table(rows: Iterable[Row]) -> str:
    head = ["", "evaluations", "FID", "precision", "recall", "images seen", "seconds", "samples/s", "least", "largest"]
    body = []
    for row in rows:
        values, summary, speed = row.values, row.summary, row.values["samples_per_second"]
        ranges = [f"{min(row.fids):.4g}", f"{max(row.fids):.4g}"] if len(row.fids) > 1 else ["", ""]
        body.append([
            row.title, str(values["network_evaluations"]), *(f"{values[metric]:.4g}" for metric in METRICS),
            f"{row.images_seen:,}", f"{summary['seconds']:,.0f}", f"{speed:,.0f}", *ranges,
        ])  # fmt: skip
    return to_markdown([head, *body])


def _papers_table(papers: dict[str, Any]) -> str:
    body = [
        [row["method"], row["source"], *("" if fid is None else f"{fid:.2f}" for fid in row["fid"])]
        for row in papers["rows"]
    ]
    return to_markdown([["method", "arXiv", *papers["columns"]], *body])


def orderings(rows: Rows, papers: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The papers' orderings and their reproduction here: column, better method, worse method, and a verdict.

    The verdict is "yes", "no", or "too close" if the two FIDs here differ by less than :func:`_resolution`.
    """
    found = []
    resolution = 0.0 if rows.spread is None else _resolution(rows.spread)
    for index, column in enumerate(papers["columns"]):
        ranked = [row for row in papers["rows"] if row["fid"][index] is not None]
        for pair in combinations(ranked, 2):
            if pair[0]["fid"][index] == pair[1]["fid"][index]:
                continue
            better, worse = sorted(pair, key=lambda row: row["fid"][index])
            gap = rows.best_of(worse["runs"]).values["fid"] - rows.best_of(better["runs"]).values["fid"]
            verdict = "too close" if abs(gap) < resolution else "yes" if gap > 0 else "no"
            found.append((column, better["method"], worse["method"], verdict))
    return found


def _orderings_table(rows: Rows, papers: dict[str, Any]) -> str:
    return to_markdown([["column", "better", "worse", "reproduced"], *(list(line) for line in orderings(rows, papers))])


def _resolution(spread: float) -> float:
    """Twice the standard deviation of the difference of two FIDs."""
    return 2 * math.sqrt(2) * spread


def save_fid_curves(rows: Rows, path: Path) -> None:
    """Plot each student's FID against images seen, and the teacher's FID as a line.

    Raises:
        ValueError: naming the run whose log has no FID, see :attr:`Row.curve`.
    """
    teacher, *students = rows.rows.values()
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axis = figure.subplots()
    for row in students:
        axis.plot(*zip(*row.curve, strict=True), marker=".", label=row.title)
    axis.axhline(teacher.values["fid"], color="black", linestyle="--", label="teacher")
    axis.set_xlabel("images seen")
    axis.set_ylabel("FID")
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, path)


def generate_samples(row: Row, count: int) -> Tensor:
    """Images [count, C, H, W] of a row's network, of the seeds 0, 1, ..."""
    if row.side == "student":
        return generate(Generator.from_pretrained(row.folder / "generator"), count)
    teacher = load_denoiser(row.folder / "teacher").requires_grad_(False)
    options = read_record(row.folder).get("sampler")
    if not isinstance(options, dict):
        raise ValueError(f"{row.folder}: config.yaml has no sampler of its teacher")
    sampler = HeunSampler(**{name: value for name, value in options.items() if not name.startswith("_")})
    return sampler(teacher, *seeded_inputs(list(range(count)), teacher.image_shape, teacher.label_dim))


def write_page(folder: Path, output: Path, samples: int) -> None:
    """Write ``output`` with the suffixes ``.md``, ``_curves.png`` and ``_samples.png``.

    Raises:
        ValueError: see :func:`read_rows` and :func:`save_fid_curves`.
    """
    plan_file = output.with_name(f"{output.name}.yaml")
    if not plan_file.is_file():
        raise ValueError(f"{plan_file}: no such file; expected the list of runs to compare")
    plan = read_yaml(plan_file)
    rows, features = read_rows(folder, plan), read_json(folder / plan["features"] / "summary.json", OfFeatures)
    page = to_page(rows, features, plan, output.name)
    save_fid_curves(rows, output.with_name(f"{output.name}_curves.png"))
    panels = {row.title: generate_samples(row, samples) for row in rows.rows.values()}
    save_panels(panels, output.with_name(f"{output.name}_samples.png"))
    write_text(output.with_name(f"{output.name}.md"), page)


def main() -> None:
    """Read the command line and write the page."""
    parser = argparse.ArgumentParser(
        "python -m onestep.reports.results_page", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("folder", type=Path, help="the folder of the runs, such as outputs/fashion")
    parser.add_argument("output", type=Path, help="OUTPUT.yaml is read; OUTPUT.md and OUTPUT_*.png are written")
    parser.add_argument("--samples", type=int, default=25, help="images per panel")
    arguments = parser.parse_args()
    try:
        write_page(arguments.folder, arguments.output, arguments.samples)
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()

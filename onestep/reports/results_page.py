"""A folder of runs as a page with a table, curves and samples, beside the papers' figures.

``python -m onestep.reports.results_page outputs/fashion docs/results`` reads which runs are compared, and what the
papers say, from ``docs/results.yaml``; all else from the files that the runs wrote. A run that is missing, unfinished
or not comparable with the others ends it with the run's name: there is no page with a row less.
"""

import argparse
import math
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor

from onestep.files import write_text
from onestep.models.generator import Generator, load_denoiser
from onestep.reports.compare import draw, save_panels
from onestep.reports.plots import save_figure
from onestep.reports.results_rows import METRICS, Row, Rows, read_rows, read_summary
from onestep.reports.tables import to_markdown
from onestep.samplers import HeunSampler
from onestep.seeding import seeded_inputs


def to_page(rows: Rows, features: dict[str, Any], plan: dict[str, Any], name: str) -> str:
    """The page in Markdown; its pictures are ``{name}_curves.png`` and ``{name}_samples.png``."""
    teacher, *students = rows.rows.values()
    protocol, spread = teacher.protocol, rows.spread
    parameters = sum(value.numel() for value in load_denoiser(teacher.folder / "teacher").parameters())
    paragraphs = [
        f"# {plan['title']}",
        plan["text"].strip(),
        f"Teacher and students are networks of {parameters:,} parameters. Figures are of {protocol['samples']:,} "
        f"samples against {protocol['reference']}, in the features of the {protocol['features']}, whose accuracy on "
        f"{features['held_out_images']:,} held-out images is {100 * features['held_out_accuracy']:.2f} %.",
        _table(rows.rows.values()),
        _verdict(students, teacher),
        "The spread of a FID over ranges of seeds was not measured."
        if spread is None
        else f"**What a difference means.** The columns on the right are the least and the largest FID of the same "
        f"network over disjoint ranges of seeds. Their standard deviation, pooled over the rows, is {spread:.2g}: two "
        f"figures that differ by less than {_resolution(spread):.2g} (twice that of a difference) do not differ. Each "
        "row is one training; how much another seed of the training changes is not in it.",
        f"![FID against images seen]({name}_curves.png)",
        f"![Samples of the same seeds]({name}_samples.png)",
        *_longer_section(rows),
        "## The papers' figures",
        _papers_table(plan["papers"]),
        "Which of their orderings reappear, of all pairs that a column ranks:",
        _orderings_table(rows, plan["papers"]),
    ]
    return "\n\n".join(paragraph.rstrip("\n") for paragraph in paragraphs) + "\n"


def _verdict(students: Iterable[Row], teacher: Row) -> str:
    best = min(students, key=lambda row: row.figures["fid"])
    verdict = "at or under" if best.figures["fid"] <= teacher.figures["fid"] else "above"
    return (
        f"The best student of this table, {best.title}, has a FID of {best.figures['fid']:.4g} with "
        f"{best.figures['network_evaluations']} evaluation, {verdict} its teacher's {teacher.figures['fid']:.4g} with "
        f"{teacher.figures['network_evaluations']}."
    )


def _longer_section(rows: Rows) -> list[str]:
    """The students that saw more images, with their FIDs on the way; nothing if there are none."""
    if not rows.longer:
        return []
    teacher = next(iter(rows.rows.values()))
    on_the_way = [
        f"- {row.title}: " + ", ".join(f"{fid:.4g} ({images:,})" for images, fid in row.curve)
        for row in rows.longer.values()
    ]
    return [
        "## Trained longer",
        "Students that saw more images than those above.",
        _table(rows.longer.values()),
        _verdict(rows.longer.values(), teacher),
        "FID on the way, after so many images:\n\n" + "\n".join(on_the_way),
    ]


def _table(rows: Iterable[Row]) -> str:
    head = ["", "evaluations", "FID", "precision", "recall", "images seen", "seconds", "samples/s", "least", "largest"]
    body = []
    for row in rows:
        figures, summary, speed = row.figures, row.summary, row.figures["samples_per_second"]
        ranges = [f"{min(row.fids):.4g}", f"{max(row.fids):.4g}"] if len(row.fids) > 1 else ["", ""]
        body.append([
            row.title, str(figures["network_evaluations"]), *(f"{figures[metric]:.4g}" for metric in METRICS),
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
        ValueError: naming the run whose log has no FID, see :attr:`Row.curve`.
    """
    teacher, *students = rows.rows.values()
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axis = figure.subplots()
    for row in students:
        axis.plot(*zip(*row.curve, strict=True), marker=".", label=row.title)
    axis.axhline(teacher.figures["fid"], color="black", linestyle="--", label="teacher")
    axis.set_xlabel("images seen")
    axis.set_ylabel("FID")
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, path)


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
    rows, features = read_rows(folder, plan), read_summary(folder / plan["features"])
    page = to_page(rows, features, plan, output.name)
    save_fid_curves(rows, output.with_name(f"{output.name}_curves.png"))
    panels = {row.title: draw_samples(row, samples) for row in rows.rows.values()}
    save_panels(panels, output.with_name(f"{output.name}_samples.png"))
    write_text(output.with_name(f"{output.name}.md"), page)


def main() -> None:
    """Read the command line and write the page."""
    parser = argparse.ArgumentParser(
        "python -m onestep.reports.results_page", description=__doc__.partition("\n")[0] if __doc__ else None
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

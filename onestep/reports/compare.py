"""Comparison of the runs in a folder: a table of metrics and a plot of samples."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from onestep.denoiser import beyond_labels
from onestep.models.generator import Generator
from onestep.reports.plots import plot_samples, save_figure
from onestep.reports.tables import descriptions_of, format_value, read_summary, to_markdown
from onestep.seeding import seeded_inputs


def read_runs(folder: Path) -> dict[str, Path]:
    """The finished runs in ``folder``, sorted, by the overrides in the folder names that differ between them.

    Raises:
        ValueError: if there is no finished run.
    """
    runs = sorted(path.parent for path in folder.glob("*/summary.json"))
    if not runs:
        raise ValueError(f"{folder} holds no finished run: give the folder of a sweep (onestep train -m ...)")
    overrides = [[override.replace("-", "=", 1) for override in run.name.split("+")] for run in runs]
    common = set(overrides[0]).intersection(*overrides[1:]) if len(runs) > 1 else set()
    names = [", ".join(value for value in values if value not in common) or run.name
             for values, run in zip(overrides, runs, strict=True)]  # fmt: skip
    return dict(zip(names, runs, strict=True))


def to_table(runs: dict[str, Path]) -> str:
    """A Markdown table of the students' metrics, one run per row, with the first run's teacher on top."""
    summaries = {name: read_summary(run) for name, run in runs.items()}
    for name, summary in summaries.items():
        if "student" not in summary:
            raise ValueError(f"{runs[name]}: summary.json has no student; expected distillations")
    first = next(iter(summaries.values()))
    metrics = {key: of for summary in summaries.values() for key, of in descriptions_of(summary).items()}
    rows = [["", *(of.heading for of in metrics.values()), "evaluations", "images seen", "seconds"]]
    rows.append(_row("teacher", first["teacher"], metrics, ["", ""]))
    for name, summary in summaries.items():
        cost = [f"{summary['images_seen']:,}", f"{summary['seconds']:.0f}"]
        rows.append(_row(name, summary["student"], metrics, cost))
    return to_markdown(rows)


def _row(name: str, side: dict[str, Any], keys: Iterable[str], cost: list[str]) -> list[str]:
    values = (format_value(side[key]) if key in side else "" for key in keys)
    return [name, *values, str(side["network_evaluations"]), *cost]


def save_panels(panels: dict[str, Tensor], path: Path, columns: int = 4) -> None:
    """Write a plot with one panel for each of ``panels``, samples [N, C, H, W] by title."""
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, samples) in zip(axes, panels.items(), strict=False):
        axis.set_title(title.replace(", ", "\n"), fontsize=8)
        plot_samples(axis, samples)
    save_figure(figure, path)


def generate(generator: Generator, count: int) -> Tensor:
    """The generator's samples [count, C, H, W] of the seeds 0, 1, ..."""
    denoiser = generator.denoiser
    if others := beyond_labels(denoiser.condition_keys):
        raise ValueError(
            f"a generator takes {', '.join(others)} as its condition, and a comparison draws from seeds and classes "
            "alone: compare the runs' summary.json"
        )
    latents, condition = seeded_inputs(list(range(count)), denoiser.image_shape, denoiser.label_dim)
    samples: Tensor = generator.requires_grad_(False)(latents, condition)
    return samples


def generate_all(runs: dict[str, Path], count: int) -> dict[str, Tensor]:
    """Samples of each run's averaged generator, from the same seeds."""
    return {name: generate(Generator.from_pretrained(run / "generator"), count) for name, run in runs.items()}

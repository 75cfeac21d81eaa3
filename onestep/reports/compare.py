"""A folder of runs as one table and one picture: ``python -m onestep.reports.compare outputs/sweep_... docs/lab``."""

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from onestep.files import write_text
from onestep.models.generator import Generator
from onestep.reports.plots import plot_samples, save_figure
from onestep.reports.tables import descriptions_of, format_value, to_markdown
from onestep.seeding import seeded_inputs


def read_runs(folder: Path) -> dict[str, Path]:
    """The finished runs in ``folder``, sorted, by what tells them apart: the overrides in a sweep's folder names.

    Raises:
        ValueError: if there is none.
    """
    runs = sorted(path.parent for path in folder.glob("*/summary.json"))
    if not runs:
        raise ValueError(f"{folder} holds no finished run: give the folder of a sweep (python train.py -m ...)")
    overrides = [run.name.split(",") for run in runs]
    common = set(overrides[0]).intersection(*overrides[1:]) if len(runs) > 1 else set()
    names = [", ".join(value for value in values if value not in common) or run.name
             for values, run in zip(overrides, runs, strict=True)]  # fmt: skip
    return dict(zip(names, runs, strict=True))


def to_table(runs: dict[str, Path]) -> str:
    """The students' metrics as a Markdown table, a run a row, with the teacher of the first run on top."""
    summaries = {name: json.loads((run / "summary.json").read_text()) for name, run in runs.items()}
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
    """Write one picture with a panel for each of ``panels``, samples [N, C, H, W] by their title."""
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, samples) in zip(axes, panels.items(), strict=False):
        axis.set_title(title.replace(", ", "\n"), fontsize=8)
        plot_samples(axis, samples)
    save_figure(figure, path)


def draw(generator: Generator, count: int) -> Tensor:
    """The samples [count, C, H, W] of the seeds 0, 1, ..."""
    denoiser = generator.denoiser
    latents, condition = seeded_inputs(list(range(count)), denoiser.image_shape, denoiser.label_dim)
    samples: Tensor = generator.requires_grad_(False)(latents, condition)
    return samples


def draw_all(runs: dict[str, Path], count: int) -> dict[str, Tensor]:
    """What each run's averaged generator draws from the same seeds."""
    return {name: draw(Generator.from_pretrained(run / "generator"), count) for name, run in runs.items()}


def main() -> None:
    """Read the command line, write ``OUTPUT.md`` and ``OUTPUT.png``, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m onestep.reports.compare", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a sweep, with a run in each subfolder")
    parser.add_argument("output", type=Path, help="where to write, without an ending: OUTPUT.md and OUTPUT.png")
    parser.add_argument("--samples", type=int, default=2000, help="samples in a panel; 25 suit images")
    arguments = parser.parse_args()
    try:
        runs = read_runs(arguments.folder)
        table = to_table(runs)
        save_panels(draw_all(runs, arguments.samples), Path(f"{arguments.output}.png"))
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")
    write_text(f"{arguments.output}.md", table)
    print(table)


if __name__ == "__main__":
    main()

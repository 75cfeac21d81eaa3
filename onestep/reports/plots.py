"""Plots of a run: grids of samples, teacher and student side by side, and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from onestep.files import atomic_file
from onestep.images import to_uint8
from onestep.metrics.result import Description
from onestep.toy.networks import are_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def to_grid(images: Tensor, columns: int, scale: int, gap: int = 1) -> Tensor:
    """Tile images [N, C, H, W] in [-1, 1] into one uint8 image [H', W', C], with pixels enlarged ``scale`` times."""
    pixels = to_uint8(images).cpu()
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    pixels = torch.cat([pixels, pixels.new_full((rows * columns - count, channels, height, width), 255)])
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    pixels = torch.nn.functional.pad(pixels, (gap, gap, gap, gap), value=255)
    tiled = pixels.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2)
    return tiled.reshape(rows * tiled.shape[1], columns * tiled.shape[3], channels)


def enlargement(images: Tensor) -> int:
    """The smallest integer factor that enlarges a sample to a width of at least 48 pixels."""
    return max(1, -(-48 // images.shape[-1]))


def save_image(pixels: Tensor, path: Path) -> None:
    """Write uint8 pixels [H, W, 1 or 3] as PNG."""
    array: np.ndarray = pixels.numpy()
    with atomic_file(path) as temporary:
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(temporary)


def new_figure(**options: Any) -> "Figure":
    """A figure of matplotlib, which is imported here as most samples need none."""
    from matplotlib.figure import Figure

    return Figure(**options)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in the format of the path's suffix."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=100)


def save_samples(samples: Tensor, path: Path, columns: int = 10) -> None:
    """Write images [N, C, H, W] in [-1, 1] as one grid, row by row; or points [N, D, 1, 1] as dots."""
    if not are_points(samples):
        save_image(to_grid(samples, columns, enlargement(samples)), path)
        return
    figure = new_figure(figsize=(5, 5), layout="constrained")
    plot_samples(figure.subplots(), samples)
    save_figure(figure, path)


def plot_samples(axis: "Axes", samples: Tensor) -> None:
    """Plot images as a grid, 2-D points [N, 2, 1, 1] as dots, 1-D points as a histogram; axes span [-1.5, 1.5]."""
    if not are_points(samples):
        grid = to_grid(samples, columns=10 if len(samples) > 25 else 5, scale=enlargement(samples)).numpy()
        axis.imshow(grid.squeeze(), cmap="gray", vmin=0, vmax=255)
        axis.set_axis_off()
        return
    points = samples.flatten(1).numpy()
    axis.set_xlim(-1.5, 1.5)
    if points.shape[1] == 1:
        axis.hist(points[:, 0], bins=100, range=(-1.5, 1.5), density=True)
        return
    axis.scatter(points[:, 0], points[:, 1], s=1, linewidths=0, alpha=0.5)
    axis.set_ylim(-1.5, 1.5)
    axis.set_aspect("equal")


def save_side_by_side(teacher: Tensor, student: Tensor, titles: tuple[str, str], path: Path) -> None:
    """Write a plot of the teacher's and the student's samples [N, C, H, W], two titled panels."""
    figure = new_figure(figsize=(12, 6.6), layout="constrained")
    for axis, samples, title in zip(figure.subplots(1, 2), (teacher, student), titles, strict=True):
        plot_samples(axis, samples)
        axis.set_title(title)
    save_figure(figure, path)


def save_diagnosis(lines: Sequence[dict[str, Any]], prefix: str, path: Path) -> None:
    """Plot the values of the diagnoses in a log's ``lines`` against images seen; one panel a name, one curve a level.

    Args:
        lines: lines of the log.
        prefix: of the keys of a diagnosis, which are PREFIX NAME or PREFIX NAME/LEVEL.
        path: file of the plot; there is none without a diagnosis.
    """
    keys = dict.fromkeys(key for line in lines for key in line if key.startswith(prefix))
    names = list(dict.fromkeys(key.removeprefix(prefix).partition("/")[0] for key in keys))
    if not names:
        return
    columns = min(4, len(names))
    figure = new_figure(figsize=(4 * columns, 3 * -(-len(names) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(names) // columns), columns, squeeze=False).flat
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes, names, strict=False):
        for key in keys:
            found, _, level = key.removeprefix(prefix).partition("/")
            if found == name:
                points = [(line["images_seen"], line[key]) for line in lines if key in line]
                axis.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None, label=level or None)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(title="noise level", fontsize="small")
        axis.set_title(name.replace("_", " "))
        axis.set_xlabel("images seen")
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def save_curves(
    lines: Sequence[dict[str, Any]], metrics: Mapping[str, Description], diagnostics: Sequence[str], path: Path
) -> None:
    """Plot the values in the log's ``lines`` against images seen, one panel each.

    Args:
        lines: lines of the log.
        metrics: title and direction by key, in the first panels. Positive metrics for which lower is better, such as
            distances, have a logarithmic scale.
        diagnostics: keys of training diagnostics.
        path: file of the plot.
    """
    present = [name for name in (*metrics, *diagnostics) if any(name in line for line in lines)]
    if not present:  # a run shorter than its first log line
        return
    columns = min(3, len(present))
    rows = -(-len(present) // columns)
    figure = new_figure(figsize=(5 * columns, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis in axes[len(present) :]:
        axis.set_axis_off()
    for axis, name in zip(axes, present, strict=False):
        points = [(line["images_seen"], line[name]) for line in lines if name in line]
        axis.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None)
        axis.set_title(metrics[name].title if name in metrics else name.replace("_", " "))
        axis.set_xlabel("images seen")
        axis.grid(alpha=0.3)
        is_distance = name in metrics and not metrics[name].higher_is_better
        if is_distance and all(value > 0 for _, value in points):
            axis.set_yscale("log")
    save_figure(figure, path)

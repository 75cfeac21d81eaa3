"""Plots: the positions of pixels, and the panels of curves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from onestep.metrics.result import Description
from onestep.reports.plots import enlargement, save_curves, save_diagnosis, save_image, save_samples, to_grid


def test_grid_places_known_pixels() -> None:
    """Three 2x2 images in two columns, doubled, with a white line of one pixel around each."""
    images = torch.full((3, 1, 2, 2), -1.0)
    images[0, 0, 0, 0] = 0.0  # 128
    images[1, 0, 1, 0] = 0.5  # 191
    images[2, 0, 0, 1] = -0.5  # 64
    grid = to_grid(images, columns=2, scale=2)
    expected = np.full((12, 12), 255, dtype=np.uint8)
    for row, column in ((0, 0), (0, 6), (6, 0)):
        expected[row + 1 : row + 5, column + 1 : column + 5] = 0
    expected[1:3, 1:3] = 128
    expected[3:5, 7:9] = 191
    expected[7:9, 3:5] = 64
    assert grid.dtype == torch.uint8
    np.testing.assert_array_equal(grid[:, :, 0].numpy(), expected)


def test_colours_stay_apart() -> None:
    images = torch.tensor([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1).expand(2, 3, 1, 1)
    grid = to_grid(images, columns=2, scale=1, gap=0)
    assert grid.tolist() == [[[255, 128, 0], [255, 128, 0]]]


def test_samples_are_enlarged_to_48_pixels() -> None:
    assert [enlargement(torch.zeros(1, 1, size, size)) for size in (8, 28, 32, 48, 64)] == [6, 2, 2, 1, 1]


def test_files_hold_the_pixels(tmp_path: Path) -> None:
    images = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
    save_samples(images, tmp_path / "new" / "grey.png", columns=3)
    with Image.open(tmp_path / "new" / "grey.png") as grey:
        np.testing.assert_array_equal(np.asarray(grey), to_grid(images, columns=3, scale=6)[:, :, 0].numpy())
    pixels = torch.arange(24, dtype=torch.uint8).reshape(2, 4, 3)
    save_image(pixels, tmp_path / "colour.png")
    with Image.open(tmp_path / "colour.png") as colour:
        np.testing.assert_array_equal(np.asarray(colour), pixels.numpy())


def test_a_diagnosis_has_a_panel_for_each_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one curve for each level; a value that was not finite is a gap."""
    drawn: dict[str, dict[str, list[list[float]]]] = {}

    def keep(figure: Figure, path: Path) -> None:
        for axis in filter(lambda axis: axis.get_title(), figure.axes):
            drawn[axis.get_title()] = {
                str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axis.lines
            }

    monkeypatch.setattr("onestep.reports.plots.save_figure", keep)
    lines = [{"images_seen": seen, "loss": 1.0} for seen in (10, 20)]
    save_diagnosis(lines, "diagnosis/", tmp_path / "plot.png")
    assert drawn == {}
    lines[0] |= {"diagnosis/score_gap/0.1": 3.0, "diagnosis/score_gap/2": 1.0}
    lines[1] |= {"diagnosis/score_gap/0.1": 2.0, "diagnosis/spread": 0.9}
    save_diagnosis(lines, "diagnosis/", tmp_path / "plot.png")
    assert drawn["score gap"] == {"0.1": [[10, 3], [20, 2]], "2": [[10, 1]]}
    assert list(drawn) == ["score gap", "spread"] and list(drawn["spread"].values()) == [[[20, 0.9]]]


def test_curves_read_the_metrics_descriptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics first, under their titles; positive distances on a logarithmic scale; no panel for missing values."""
    drawn: list[tuple[str, str]] = []
    savefig = Figure.savefig

    def keep_and_save(figure: Figure, *arguments: Any, **options: Any) -> None:
        drawn.extend((axis.get_title(), axis.get_yscale()) for axis in figure.axes if axis.get_title())
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep_and_save)
    metrics = {"kid": Description("KID", False), "fd": Description("FD-DINOv2", False), "none": Description("-", True)}
    metrics["recall"] = Description("recall", True)
    first = {"images_seen": 16, "fake_score_loss": 2.0}
    second = {"images_seen": 32, "fake_score_loss": 1.0, "fd": 3.0, "recall": 0.5, "kid": -0.001}
    save_curves([first, second], metrics, ["fake_score_loss", "other"], tmp_path / "curves.png")
    expected = [("KID", "linear"), ("FD-DINOv2", "log"), ("recall", "linear"), ("fake score loss", "linear")]
    assert drawn == expected and (tmp_path / "curves.png").is_file()
    save_curves([{"iteration": 5}], metrics, ["loss"], tmp_path / "none.png")  # a run shorter than its first log line
    assert not (tmp_path / "none.png").exists()

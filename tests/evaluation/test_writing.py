"""Samples as files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onestep.evaluation.writing import SampleWriter


def grey(levels: torch.Tensor) -> torch.Tensor:
    """Images [N, 3, 4, 4] whose every pixel is quantised to ``levels`` [N]."""
    return ((levels - 127.5) / 127.5)[:, None, None, None].expand(-1, 3, 4, 4)


def test_png_files_are_there_when_it_has_waited(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path / "drawn", "png", (3, 4, 4))
    levels = torch.arange(130.0)
    for start in (0, 100):  # more than a thread writes in one go, and fewer
        seeds = range(7 + start, 7 + min(start + 100, 130))
        writer.add(grey(levels[start : start + 100]), seeds)
    writer.wait()
    assert writer.finish(grey(levels), range(7, 137)) == tmp_path / "drawn"
    files = sorted((tmp_path / "drawn").iterdir())
    assert [file.name for file in files] == [f"{seed:06d}.png" for seed in range(7, 137)]
    for level, file in enumerate(files):
        assert np.array_equal(np.asarray(Image.open(file)), np.full((4, 4, 3), level))


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path, "png", (3, 4, 4))
    (tmp_path / "000001.png").mkdir()
    writer.add(grey(torch.zeros(3)), range(3))
    with pytest.raises(IsADirectoryError):
        writer.wait()


def test_points_are_no_png_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format=png: .* points, not images: use format=npz"):
        SampleWriter(tmp_path / "drawn", "png", (2, 1, 1))
    assert not (tmp_path / "drawn").exists()

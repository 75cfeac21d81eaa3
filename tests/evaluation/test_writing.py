"""Samples as files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onestep.evaluation.evaluate import open_samples
from onestep.evaluation.writing import Format, SampleWriter


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


@pytest.mark.parametrize(("format", "file"), [("png", "000001.png"), ("grid", "grid.png"), ("npz", "samples.npz")])
def test_a_file_that_cannot_be_written_is_an_error(format: Format, file: str, tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path, format, (3, 4, 4))
    (tmp_path / file).mkdir()
    writer.add(grey(torch.zeros(3)), range(3))
    with pytest.raises(
        ValueError, match=rf"^save_to={tmp_path}: the samples could not be written \(Is a directory\): fr"
    ):
        writer.wait()
        writer.finish(grey(torch.zeros(3)), range(3))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_points_are_no_png_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format=png: .* points, not images: use format=npz"):
        SampleWriter(tmp_path / "drawn", "png", (2, 1, 1))
    assert not (tmp_path / "drawn").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_samples_that_are_not_finite_are_not_written(value: float, tmp_path: Path) -> None:
    """As pixels, NaN would be black."""
    writer, images = SampleWriter(tmp_path, "png", (3, 4, 4)), grey(torch.arange(8.0)).clone()
    images[5, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"1 of 4 samples of a batch are not finite \(seeds 15\)"):
        list(writer.write(images.split(4), range(10, 18)))
    writer.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{seed:06d}.png" for seed in range(10, 14)]


def test_seeds_of_an_array_are_integers(tmp_path: Path) -> None:
    first = 2**32 - 2
    writer = SampleWriter(tmp_path, "npz", (3, 4, 4))
    saved = np.load(writer.finish(grey(torch.zeros(2)), range(first, first + 2)))
    assert saved["seeds"].dtype == np.int64 and saved["seeds"].tolist() == [first, first + 1]
    assert open_samples(str(tmp_path / "samples.npz")).seeds == [first, first + 1]


@pytest.mark.parametrize(
    "numbers, seeds", [([3, 4, 5], [3, 5]), ([0, 1, 100], None), ([7], [7, 7]), ([2**32 - 1], [2**32 - 1] * 2)]
)
def test_seeds_of_files_are_named_without_a_gap(numbers: list[int], seeds: list[int] | None, tmp_path: Path) -> None:
    for number in numbers:
        Image.new("L", (4, 4)).save(tmp_path / f"{number:06d}.png")
    np.savez(tmp_path / "samples.npz", images=np.zeros((len(numbers), 4, 4, 1), np.uint8), seeds=numbers)
    assert open_samples(str(tmp_path)).seeds == open_samples(str(tmp_path / "samples.npz")).seeds == seeds
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    assert open_samples(str(tmp_path)).seeds is None

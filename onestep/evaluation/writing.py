"""Samples as files: PNG files, written by threads during the sampling, one grid, or one array."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor

from onestep.files import atomic_file
from onestep.images import to_uint8
from onestep.reports.plots import save_image, save_samples

FORMATS = ("png", "grid", "npz")
_IMAGES_PER_TASK = 50  # PNG files that a thread writes per task


class SampleWriter:
    """Writes images [B, C, H, W] in [-1, 1], or points, into ``folder``, which the first write creates.

    PNG files are named by their seeds, and each process writes its rows. A grid or an array has all samples;
    :meth:`finish` writes it.

    Raises:
        ValueError: for PNG files of points.
    """

    def __init__(self, folder: Path, format: str, image_shape: tuple[int, ...]) -> None:
        self.folder, self.format = folder, format
        self.points = tuple(image_shape[1:]) == (1, 1)
        if self.points and format == "png":
            raise ValueError("format=png: these samples are points, not images: use format=npz or format=grid")
        # zlib releases Python's lock, so threads suffice; more than two would contend for it.
        self._threads = ThreadPoolExecutor(2, "png")
        self._writing: list[Future[None]] = []

    def add(self, samples: Tensor, seeds: Sequence[int]) -> None:
        """Start to write the ``samples`` (on the CPU) of ``seeds`` if each has its own file."""
        if self.format == "png":
            self.folder.mkdir(parents=True, exist_ok=True)
            for start in range(0, len(seeds), _IMAGES_PER_TASK):
                end = start + _IMAGES_PER_TASK
                self._writing.append(self._threads.submit(self._write_png, samples[start:end], seeds[start:end]))

    def write(self, batches: Iterable[Tensor], seeds: Sequence[int]) -> Iterator[Tensor]:
        """Yield the ``batches`` of the samples of ``seeds``, and :meth:`add` each."""
        start = 0
        for batch in batches:
            self.add(batch, seeds[start : start + len(batch)])
            start += len(batch)
            yield batch

    def _write_png(self, samples: Tensor, seeds: Sequence[int]) -> None:
        for seed, image in zip(seeds, to_uint8(samples).permute(0, 2, 3, 1), strict=True):
            save_image(image, self.folder / f"{seed:06d}.png")

    def wait(self) -> None:
        """Wait until all added samples are written; raises the error of a failed write."""
        self._threads.shutdown()
        for part in self._writing:
            part.result()

    def finish(self, samples: Tensor, seeds: Sequence[int]) -> Path:
        """Write all ``samples`` if they are one file; returns that file, or the folder of the PNG files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.format == "grid":
            save_samples(samples, self.folder / "grid.png")
            return self.folder / "grid.png"
        if self.format == "npz":
            pixels = samples if self.points else to_uint8(samples).permute(0, 2, 3, 1)
            with atomic_file(self.folder / "samples.npz") as temporary:
                np.savez(temporary, images=pixels.numpy(), seeds=np.array(seeds))
            return self.folder / "samples.npz"
        return self.folder

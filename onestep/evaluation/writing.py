"""Samples as files: PNG files, written by threads during the sampling, one grid, or one array."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

import numpy as np
from torch import Tensor

from onestep.evaluation.generate import check_finite
from onestep.files import atomic_file
from onestep.images import to_uint8
from onestep.reports.plots import save_image, save_samples

#: A folder of images, one image, or one array.
Format = Literal["png", "grid", "npz"]
_IMAGES_PER_TASK = 50  # PNG files that a thread writes per task


def check_folder(folder: Path) -> None:
    """Check, before anything is drawn, that ``folder`` can be written to and holds no files but hidden ones and logs.

    Samples beside others would be counted as one set.

    Raises:
        ValueError: naming the setting save_to.
    """
    present = next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), Path("/"))
    if not present.is_dir():
        raise ValueError(f"save_to={folder}: {present} is a file: give a new folder")
    if not os.access(present, os.W_OK | os.X_OK):
        raise ValueError(f"save_to={folder}: no permission to write to {present}: give a folder of your own")
    if present == folder:
        others = sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.suffix != ".log")
        if others:
            raise ValueError(
                f"save_to={folder}: it holds {len(others)} other files, such as {others[0]}: give a new folder, or "
                "delete them first"
            )


class SampleWriter:
    """Writes images [B, C, H, W] in [-1, 1], or points, into ``folder``, which is made.

    PNG files are named by their seeds, and each process writes its rows. A grid or an array has all samples;
    :meth:`finish` writes it.

    Raises:
        ValueError: for PNG files of points, or a folder that cannot be made or written to.
    """

    def __init__(self, folder: Path, format: Format, image_shape: tuple[int, ...]) -> None:
        self.folder, self.format = folder, format
        self.points = tuple(image_shape[1:]) == (1, 1)
        if self.points and format == "png":
            raise ValueError("format=png: these samples are points, not images: use format=npz or format=grid")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(f"save_to={folder}: {error.strerror}: give a folder that can be written to") from error
        # zlib releases Python's lock, so threads suffice; more than two would contend for it.
        self._threads = ThreadPoolExecutor(2, "png")
        self._writing: deque[Future[None]] = deque()

    def add(self, samples: Tensor, seeds: Sequence[int]) -> None:
        """Start to write the ``samples`` (on the CPU) of ``seeds`` if each has its own file."""
        if self.format == "png":
            for start in range(0, len(seeds), _IMAGES_PER_TASK):
                end = start + _IMAGES_PER_TASK
                self._writing.append(self._threads.submit(self._write_png, samples[start:end], seeds[start:end]))

    def write(self, batches: Iterable[Tensor], seeds: Sequence[int]) -> Iterator[Tensor]:
        """Yield the ``batches`` of the samples of ``seeds``, and :meth:`add` each.

        Raises:
            ValueError: with the seeds of samples that are not finite; none of their batch is written.
        """
        start = 0
        for batch in batches:
            check_finite(batch, seeds[start : start + len(batch)])
            self.add(batch, seeds[start : start + len(batch)])
            while self._writing and self._writing[0].done():  # a full disk ends the sampling, not its end alone
                self._result()
            start += len(batch)
            yield batch

    def _write_png(self, samples: Tensor, seeds: Sequence[int]) -> None:
        for seed, image in zip(seeds, to_uint8(samples).permute(0, 2, 3, 1), strict=True):
            save_image(image, self.folder / f"{seed:06d}.png")

    def wait(self) -> None:
        """Wait until all added samples are written.

        Raises:
            ValueError: if one could not be written.
        """
        self._threads.shutdown()
        while self._writing:
            self._result()

    def _result(self) -> None:
        with self._explained():
            self._writing.popleft().result()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"save_to={self.folder}: the samples could not be written ({error.strerror or error}): free disk "
                "space, or give another folder; files that are there are whole"
            ) from error

    def finish(self, samples: Tensor, seeds: Sequence[int]) -> Path:
        """Write all ``samples`` if they are one file; returns that file, or the folder of the PNG files.

        Raises:
            ValueError: if it could not be written.
        """
        if self.format == "png":
            return self.folder
        with self._explained():
            if self.format == "grid":
                save_samples(samples, self.folder / "grid.png")
                return self.folder / "grid.png"
            pixels = samples if self.points else to_uint8(samples).permute(0, 2, 3, 1)
            with atomic_file(self.folder / "samples.npz") as temporary:
                np.savez(temporary, images=pixels.numpy(), seeds=np.array(seeds, np.int64))
            return self.folder / "samples.npz"

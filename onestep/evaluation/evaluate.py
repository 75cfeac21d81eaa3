"""Figures of samples: those of files, records of where each came from, and the table of them."""

import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from onestep.data.edm_zip import EDMZip
from onestep.data.image_folder import ImageFolder
from onestep.engine.run import Run
from onestep.engine.settings import EvaluationSettings
from onestep.evaluation.generate import Draw, SampleSpace, draw_all, draw_share
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.extraction import Reference


@dataclass(frozen=True)
class SampleFiles:
    """Samples that are files.

    Args:
        samples: the images in batches; or points.
        count: how many.
        seeds: the first and the last of the seeds that the files name; None where they name none.
    """

    samples: Reference | Sequence[Tensor]
    count: int
    seeds: list[int] | None

    def batches(self) -> Any:
        """The samples [B, C, H, W] in [-1, 1], or points."""
        return self.samples if isinstance(self.samples, list) else self.samples.batches(1000)  # type: ignore[union-attr]


def open_samples(path: str) -> SampleFiles:
    """The samples of a folder of images, an EDM zip, or an .npz as ``sample.py`` or ADM's scripts write it.

    Raises:
        ValueError: if there is no such thing, or it holds no samples. Nothing is unpickled.
    """
    place = Path(path)
    if place.suffix == ".npz":
        return _open_array(place)
    images = EDMZip(path, use_labels=False) if place.is_file() else ImageFolder(path, use_labels=False)
    stems = [Path(name).stem for name in images.names]
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    seeds = [min(numbers), max(numbers)] if len(numbers) == len(stems) else None
    return SampleFiles(images, len(images), seeds)


def _open_array(path: Path) -> SampleFiles:
    try:
        with np.load(path, allow_pickle=False) as file:
            key = next((key for key in ("images", "arr_0") if key in file), None)
            if key is None:
                raise ValueError(f"its arrays are {', '.join(file)}: expected images, or ADM's arr_0")
            array = file[key]
            seeds = file.get("seeds")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: no samples ({error})") from error
    named = None if seeds is None or not len(seeds) else [int(seeds.min()), int(seeds.max())]
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] in (1, 3):
        pixels = torch.from_numpy(array).permute(0, 3, 1, 2)
        return SampleFiles([part.float() / 127.5 - 1 for part in pixels.split(1000)], len(array), named)
    if array.dtype.kind == "f" and array.ndim == 4 and array.shape[2:] == (1, 1):
        return SampleFiles([torch.from_numpy(array)], len(array), named)
    raise ValueError(
        f"{path}: expected uint8 images [N, H, W, 1 or 3] or points [N, D, 1, 1], got {array.dtype} {array.shape}"
    )


def score(evaluator: Evaluator, images: Tensor, seeds: range, network_evaluations: int) -> list[dict[str, Any]]:
    """A record of each figure of the samples of ``seeds``, see :meth:`Evaluator.figures`; in the first process.

    Args:
        evaluator: what measures.
        images: this process's share of them [N, C, H, W].
        seeds: those of all processes.
        network_evaluations: evaluations of the network a sample.
    """
    values = evaluator([images], shared=True)
    return evaluator.figures(values, len(seeds), [seeds[0], seeds[-1]], network_evaluations)


@dataclass(frozen=True)
class Scorer:
    """Scores what networks draw of the same seeds, in a run; every process must call its methods."""

    run: Run
    evaluator: Evaluator
    settings: EvaluationSettings
    space: SampleSpace

    def draw(self, draw: Draw, count: int, classes: Sequence[int] | None = None) -> Tensor:
        """Images [count, C, H, W] in every process."""
        space = replace(self.space, classes=classes)
        return draw_all(draw, range(count), self.settings.batch_size, space, self.run.accelerator)

    def interim(self, draw: Draw) -> tuple[dict[str, float], Tensor]:
        """The figures that are taken during a run, none outside the main process, and images for a grid."""
        share = self._share(draw, range(self.settings.interim_samples))
        figures = self.evaluator(share, shared=True, only=self.settings.interim_metrics)
        return figures, self.draw(draw, self.settings.grid)

    def final(self, name: str, draw: Draw, network_evaluations: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The figures of the end, of the first range of seeds, with their cost; and the records of all ranges.

        Returns:
            every metric, ``network_evaluations``, ``samples`` and ``samples_per_second``; and a record of each figure
            of each range, see :meth:`Evaluator.figures`. Of the metrics there is none outside the main process.
        """
        count = self.settings.samples
        title = f"drawing from the {name}" if self.run.accelerator.is_main_process else None
        figures: dict[str, Any] = {}
        records: list[dict[str, Any]] = []
        for number in range(self.settings.seed_ranges):
            first = number * count
            share = Clock(self._share(draw, range(first, first + count), title))
            values = self.evaluator(share, shared=True, only=self.settings.interim_metrics if number else None)
            records += self.evaluator.figures(values, count, [first, first + count - 1], network_evaluations)
            if not number:
                cost = {"samples": count, "samples_per_second": round(count / share.seconds, 1)}
                figures = values | {"network_evaluations": network_evaluations} | cost
        return figures, records

    def _share(self, draw: Draw, seeds: range, progress: str | None = None) -> Iterator[Tensor]:
        return draw_share(draw, seeds, self.settings.batch_size, self.space, self.run.accelerator, progress)


class Clock:
    """Hands on what ``items`` give, and counts the ``seconds`` that they took, without what is done with them."""

    def __init__(self, items: Iterator[Tensor]) -> None:
        self.items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator[Tensor]:
        started = time.monotonic()
        for item in self.items:
            self.seconds += time.monotonic() - started
            yield item
            started = time.monotonic()


def check_evaluation(evaluator: Evaluator, settings: EvaluationSettings, processes: int) -> None:
    """Refuse numbers of samples that a metric's name does not promise, and metrics that are not measured.

    Raises:
        ValueError: naming the metric; for fewer samples than ``processes``, naming both.
    """
    settings.check_processes(processes)
    for count in {settings.samples, settings.interim_samples}:
        evaluator.check_samples(count)
    for name in settings.interim_metrics or []:
        if name not in evaluator.metrics:
            known = ", ".join(evaluator.metrics) or "none"
            raise ValueError(f"evaluation.interim_metrics names {name}, which is none of the metrics: {known}")


def least_of(ranges: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """EDM's protocol: of each distance the least over several ranges of seeds, under a name that says so."""
    found = []
    for records in zip(*ranges, strict=True):
        if records[0]["metric"].startswith(("fid", "fd_")):
            least = min(records, key=lambda record: record["value"])
            found.append(least | {"name": f"{least['name']}_least_of_{len(ranges)}"})
    return found


def print_figures(records: list[dict[str, Any]]) -> None:
    """Show each figure with where it comes from."""
    table = Table()
    for title in ("figure", "value", "features", "reference", "samples", "seeds", "evaluations"):
        justify: Literal["left", "right"] = "right" if title in ("value", "samples", "evaluations") else "left"
        table.add_column(title, justify=justify, overflow="fold")
    for record in records:
        seeds, evaluations = record["seeds"], record["network_evaluations"]
        table.add_row(
            record["name"],
            f"{record['value']:.5g}",
            record["features"],
            record["reference"],
            f"{record['samples']:,}",
            "not known" if seeds is None else f"{seeds[0]} to {seeds[1]}",
            "not known" if evaluations is None else str(evaluations),
        )
    Console().print(table)

"""Metrics of samples: of files and of what a run draws, with a record of where each value came from."""

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
from onestep.images import from_uint8
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.extraction import Reference
from onestep.metrics.result import Measurement
from onestep.processes import process_rows
from onestep.reports.plots import save_samples


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
        return SampleFiles([from_uint8(part) for part in pixels.split(1000)], len(array), named)
    if array.dtype.kind == "f" and array.ndim == 4 and array.shape[2:] == (1, 1):
        return SampleFiles([torch.from_numpy(array)], len(array), named)
    raise ValueError(
        f"{path}: expected uint8 images [N, H, W, 1 or 3] or points [N, D, 1, 1], got {array.dtype} {array.shape}"
    )


def evaluate(
    evaluator: Evaluator, images: Tensor, seeds: range, network_evaluations: int, prompts: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """A record of each value of the samples of ``seeds``, see :meth:`Evaluator.results`; in the first process.

    Args:
        evaluator: what measures.
        images: this process's share of them [N, C, H, W].
        seeds: those of all processes.
        network_evaluations: evaluations of the network a sample.
        prompts: taken in turn by the seeds; None for samples of no prompts.
    """
    values = evaluator([images], distributed=True, prompts=_take(prompts, seeds))
    return evaluator.results(values, len(seeds), [seeds[0], seeds[-1]], network_evaluations)


def _take(prompts: Sequence[str] | None, seeds: range) -> list[str] | None:
    """The prompt of each sample of this process's share of ``seeds``, which take them in turn."""
    return None if prompts is None else [prompts[seeds[place] % len(prompts)] for place in process_rows(len(seeds))]


@dataclass(frozen=True)
class RunEvaluator:
    """Evaluates what the networks of a run draw of the same seeds; every process must call its methods.

    Args:
        run: its processes, folder and log.
        evaluator: what measures.
        settings: how many samples, and of what.
        space: gives the conditions of the samples, and decodes them.

    Raises:
        ValueError: for a metric that compares with prompts where the conditions are none.
    """

    run: Run
    evaluator: Evaluator
    settings: EvaluationSettings
    space: SampleSpace

    def __post_init__(self) -> None:
        for name, metric in self.evaluator.metrics.items():
            if metric.reads == "similarities" and self.space.prompts is None:
                raise ValueError(f"metrics: {name} compares images with their prompts, and this data has none")

    @property
    def best(self) -> str | None:
        """The key of the value that picks the best checkpoint, see :func:`best_key`."""
        return best_key(self.evaluator, self.settings)

    def draw(self, draw: Draw, count: int, classes: Sequence[int] | None = None) -> Tensor:
        """Images [count, C, H, W] in every process."""
        space = replace(self.space, classes=classes)
        return draw_all(draw, range(count), self.settings.batch_size, space, self.run.accelerator)

    def interim(self, iteration: int, draw: Draw) -> Measurement | None:
        """Evaluate after an ``iteration``: the values go to the log, and a grid of samples into ``samples/``.

        Returns:
            the value that picks the best checkpoint; None where there is none, and outside the main process.
        """
        settings, values = self.settings, {}
        if self.evaluator.keys(settings.interim_metrics):
            share = self._share(draw, range(settings.interim_samples))
            prompts = _take(self.space.prompts, range(settings.interim_samples))
            values = self.evaluator(share, distributed=True, prompts=prompts, only=settings.interim_metrics)
        shown = self.draw(draw, settings.grid)
        if not self.run.accelerator.is_main_process:
            return None
        save_samples(shown, self.run.folder / "samples" / f"iteration_{iteration:08d}.png")
        if not values:
            return None
        self.run.log.write(iteration, values)
        measured = self.measurement(values)
        assert measured is not None  # best_key is of what is measured during the run
        self.run.log.show({self.evaluator.descriptions[measured.key].title: measured.value})
        return measured

    def measurement(self, line: dict[str, Any] | None) -> Measurement | None:
        """The value of ``line``, of the log or of an evaluation, that picks the best; None where it has none."""
        if line is None or (key := self.best) is None or key not in line:
            return None
        return Measurement(key, line[key], self.evaluator.descriptions[key].higher_is_better)

    def best_line(self, lines: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The first of the log's ``lines`` with the best value; None if none has a value."""
        best: dict[str, Any] | None = None
        for line in lines:
            measured = self.measurement(line)
            if measured is not None and measured.is_better_than(self.measurement(best)):
                best = line
        return best

    def final(self, name: str, draw: Draw, network_evaluations: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The values of the first range of seeds, with their cost; and the records of all ranges.

        Returns:
            every metric, ``network_evaluations``, ``samples`` and ``samples_per_second``; and a record of each value
            of each range, see :meth:`Evaluator.results`. Of the metrics there is none outside the main process.
        """
        # Without metrics, samples show the speed alone.
        count = self.settings.samples if self.evaluator.metrics else self.settings.grid
        title = f"drawing from the {name}" if self.run.accelerator.is_main_process else None
        side: dict[str, Any] = {}
        records: list[dict[str, Any]] = []
        for number in range(self.settings.seed_ranges):
            first = number * count
            share = Clock(self._share(draw, range(first, first + count), title))
            only = self.settings.interim_metrics if number else None
            prompts = _take(self.space.prompts, range(first, first + count))
            values = self.evaluator(share, distributed=True, prompts=prompts, only=only)
            records += self.evaluator.results(values, count, [first, first + count - 1], network_evaluations)
            if not number:
                cost = {"samples": count, "samples_per_second": round(count / share.seconds, 1)}
                side = values | {"network_evaluations": network_evaluations} | cost
        return side, records

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
    """Refuse numbers of samples that a metric's name does not promise, and names of values that are not measured.

    Raises:
        ValueError: naming the metric or the value; for fewer samples than ``processes``, naming both.
    """
    settings.check_processes(processes)
    for count in {settings.samples, settings.interim_samples}:
        evaluator.check_samples(count)
    for name in settings.interim_metrics or []:
        if name not in evaluator.metrics:
            known = ", ".join(evaluator.metrics) or "none"
            raise ValueError(f"evaluation.interim_metrics names {name}, which is none of the metrics: {known}")
    best_key(evaluator, settings)


def best_key(evaluator: Evaluator, settings: EvaluationSettings) -> str | None:
    """The key of the value that picks the best checkpoint: ``evaluation.best``, else the first; None without metrics.

    Raises:
        ValueError: if ``evaluation.best`` names no value that is measured during the run.
    """
    keys = evaluator.keys(settings.interim_metrics)
    if settings.best is None:
        return keys[0] if keys else None
    if settings.best not in keys:
        raise ValueError(
            f"evaluation.best={settings.best} is none of the values that are measured during the run: "
            f"{', '.join(keys) or 'none'}; choose one of them, or null for the first"
        )
    return settings.best


def least_of(ranges: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """EDM's protocol: the least of each value, of which less is better, over several ranges of seeds.

    Its name and title say so.
    """
    found = []
    for records in zip(*ranges, strict=True):
        if not records[0]["higher_is_better"]:
            least = min(records, key=lambda record: record["value"])
            count = len(ranges)
            title = f"{least['title']}, least of {count}"
            found.append(least | {"name": f"{least['name']}_least_of_{count}", "title": title})
    return found


def print_results(records: list[dict[str, Any]]) -> None:
    """Show each value with where it comes from."""
    table = Table()
    for title in ("metric", "value", "features", "reference", "samples", "seeds", "evaluations"):
        justify: Literal["left", "right"] = "right" if title in ("value", "samples", "evaluations") else "left"
        table.add_column(title, justify=justify, overflow="fold")
    for record in records:
        seeds, evaluations = record["seeds"], record["network_evaluations"]
        table.add_row(
            record["title"],
            f"{record['value']:.5g}",
            record["features"],
            record["reference"],
            f"{record['samples']:,}",
            "not known" if seeds is None else f"{seeds[0]} to {seeds[1]}",
            "not known" if evaluations is None else str(evaluations),
        )
    Console().print(table)

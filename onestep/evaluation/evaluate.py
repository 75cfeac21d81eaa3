"""Metrics of samples, of files or of a run's networks, with a record of how each value was measured."""

import time
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
from onestep.evaluation.generate import SampleFunction, SampleSpace, generate_all, generate_local
from onestep.images import from_uint8
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.extraction import Reference
from onestep.metrics.result import Measurement
from onestep.processes import process_rows
from onestep.reading import read_arrays
from onestep.reports.plots import save_samples


@dataclass(frozen=True)
class SampleFiles:
    """Samples read from files.

    Args:
        samples: a dataset of images, or batches of images or points.
        count: number of samples.
        seeds: the first and the last seed in the files; None if they have no seeds.
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
        ValueError: if the path does not exist or holds no samples. Nothing is unpickled.
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
    arrays = read_arrays(path, ("images", "arr_0", "seeds"))  # arr_0: as ADM writes it
    seeds = arrays.pop("seeds", None)
    if not arrays:
        raise ValueError(f"{path}: no samples, expected images or arr_0")
    if seeds is not None and seeds.dtype.kind not in "iu":
        raise ValueError(f"{path}: seeds of {seeds.dtype}, expected integers")
    array = next(iter(arrays.values()))
    named = None if seeds is None or not seeds.size else [int(seeds.min()), int(seeds.max())]
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
    """The records of the metrics of the samples of ``seeds``, in the first process; see :meth:`Evaluator.results`.

    Args:
        evaluator: the metrics.
        images: this process's rows [N, C, H, W] of the samples.
        seeds: the seeds of all processes.
        network_evaluations: network evaluations per sample.
        prompts: seed ``s`` has ``prompts[s % len(prompts)]``; None for samples without prompts.
    """
    values = evaluator([images], distributed=True, prompts=_prompts_of(prompts, seeds))
    return evaluator.results(values, len(seeds), [seeds[0], seeds[-1]], network_evaluations)


def _prompts_of(prompts: Sequence[str] | None, seeds: range) -> list[str] | None:
    """The prompts of this process's rows of ``seeds``."""
    return None if prompts is None else [prompts[seeds[place] % len(prompts)] for place in process_rows(len(seeds))]


@dataclass(frozen=True)
class RunEvaluator:
    """Evaluates the networks of a run on samples of the same seeds; every process must call its methods.

    Args:
        run: processes, folder and log.
        evaluator: the metrics.
        settings: numbers of samples, and the interim metrics.
        space: inputs of the samples, and their decoder.

    Raises:
        ValueError: for a metric that compares images with prompts if the data has no prompts.
    """

    run: Run
    evaluator: Evaluator
    settings: EvaluationSettings
    space: SampleSpace

    def __post_init__(self) -> None:
        for name, metric in self.evaluator.metrics.items():
            if metric.reads == "similarities" and self.space.prompts is None:
                raise ValueError(f"metrics: {name} compares images with prompts, and this data has none: remove {name}")

    @property
    def best(self) -> str | None:
        """The key of the value that selects the best checkpoint, see :func:`best_key`."""
        return best_key(self.evaluator, self.settings)

    def generate(self, sample: SampleFunction, count: int, classes: Sequence[int] | None = None) -> Tensor:
        """Images [count, C, H, W] in every process."""
        space = replace(self.space, classes=classes)
        return generate_all(sample, range(count), self.settings.batch_size, space, self.run.accelerator)

    def interim(self, iteration: int, sample: SampleFunction) -> Measurement | None:
        """Evaluate after an ``iteration``: log the values, and save a grid of samples in ``samples/``.

        Returns:
            The value that selects the best checkpoint; None without interim metrics, and outside the main process.
        """
        settings, values = self.settings, {}
        if self.evaluator.keys(settings.interim_metrics):
            samples = self._generate_local(sample, range(settings.interim_samples))
            prompts = _prompts_of(self.space.prompts, range(settings.interim_samples))
            values = self.evaluator(samples, distributed=True, prompts=prompts, only=settings.interim_metrics)
        grid = self.generate(sample, settings.grid)
        if not self.run.accelerator.is_main_process:
            return None
        save_samples(grid, self.run.folder / "samples" / f"iteration_{iteration:08d}.png")
        if not values:
            return None
        self.run.log.write(iteration, values)
        measured = self.measurement(values)
        assert measured is not None  # best_key is among the interim values
        self.run.log.show({self.evaluator.descriptions[measured.key].title: measured.value})
        return measured

    def measurement(self, line: dict[str, Any] | None) -> Measurement | None:
        """The value in a ``line`` of the log or of an evaluation that selects the best; None if it is absent."""
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

    def final(
        self, name: str, sample: SampleFunction, network_evaluations: int
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The values of the first range of seeds, with the cost, and the records of all ranges.

        Returns:
            The metrics (in the main process alone), ``network_evaluations``, ``samples`` and ``samples_per_second``;
            and the records of :meth:`Evaluator.results` of each range.
        """
        # Without metrics, the samples serve to measure the speed alone.
        count = self.settings.samples if self.evaluator.metrics else self.settings.grid
        title = f"sampling the {name}" if self.run.accelerator.is_main_process else None
        side: dict[str, Any] = {}
        records: list[dict[str, Any]] = []
        for number in range(self.settings.seed_ranges):
            first = number * count
            samples = Clock(self._generate_local(sample, range(first, first + count), title))
            only = self.settings.interim_metrics if number else None
            prompts = _prompts_of(self.space.prompts, range(first, first + count))
            values = self.evaluator(samples, distributed=True, prompts=prompts, only=only)
            records += self.evaluator.results(values, count, [first, first + count - 1], network_evaluations)
            if not number:
                cost = {"samples": count, "samples_per_second": round(count / samples.seconds, 1)}
                side = values | {"network_evaluations": network_evaluations} | cost
        return side, records

    def _generate_local(self, sample: SampleFunction, seeds: range, progress: str | None = None) -> Iterator[Tensor]:
        return generate_local(sample, seeds, self.settings.batch_size, self.space, self.run.accelerator, progress)


class Clock:
    """Iterates over ``items`` and counts the ``seconds`` that they take, without the time of the consumer."""

    def __init__(self, items: Iterator[Tensor]) -> None:
        self.items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator[Tensor]:
        started = time.monotonic()
        for item in self.items:
            self.seconds += time.monotonic() - started
            yield item
            started = time.monotonic()


def check_evaluation(evaluator: Evaluator, settings: EvaluationSettings, processes: int) -> None:
    """Check the numbers of samples and the names of metrics and values in ``settings``.

    Raises:
        ValueError: for fewer samples than ``processes``, a number of samples that contradicts a metric's name, or the
            name of a metric or value that is not measured.
    """
    settings.check_processes(processes)
    for count in {settings.samples, settings.interim_samples}:
        evaluator.check_samples(count)
    for name in settings.interim_metrics or []:
        if name not in evaluator.metrics:
            known = ", ".join(evaluator.metrics) or "none"
            raise ValueError(f"evaluation.interim_metrics: {name} is not among the metrics: {known}")
    best_key(evaluator, settings)


def best_key(evaluator: Evaluator, settings: EvaluationSettings) -> str | None:
    """The key of the value that selects the best checkpoint: ``evaluation.best``, or the first; None without metrics.

    Raises:
        ValueError: if ``evaluation.best`` is not measured during the run.
    """
    keys = evaluator.keys(settings.interim_metrics)
    if settings.best is None:
        return keys[0] if keys else None
    if settings.best not in keys:
        raise ValueError(
            f"evaluation.best={settings.best} is not among the values that are measured during the run: "
            f"{', '.join(keys) or 'none'}; choose one of them, or null for the first"
        )
    return settings.best


def least_of(ranges: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """EDM's protocol: the least value over several ranges of seeds, for each metric whose lower values are better.

    The record's name and title say so.
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
    """Print each value with its features, reference, samples and seeds."""
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

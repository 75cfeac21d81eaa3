"""Metrics of samples, of files or of a run's networks, with a record of how each value was measured."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from onestep.data.edm_zip import EDMZip
from onestep.data.image_folder import ImageFolder
from onestep.evaluation.generate import SampleSpace
from onestep.images import from_uint8
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.extraction import Reference
from onestep.processes import process_rows
from onestep.reading import read_arrays
from onestep.reports.tables import format_value


@dataclass(frozen=True)
class SampleFiles:
    """Samples read from files.

    Args:
        samples: a dataset of images, or batches of images or points.
        count: number of samples.
        all_seeds: the seed of each sample; None if they have no seeds.
    """

    samples: Reference | Sequence[Tensor]
    count: int
    all_seeds: list[int] | None

    @property
    def seeds(self) -> list[int] | None:
        """The first and the last seed; None without seeds, or if one is missing in between or there twice."""
        seeds = sorted(self.all_seeds or [])
        return [seeds[0], seeds[-1]] if seeds and seeds == list(range(seeds[0], seeds[0] + len(seeds))) else None

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
    numbered = all(re.fullmatch(r"[0-9]{6,10}", stem) for stem in stems)  # as SampleWriter names them
    return SampleFiles(images, len(images), list(map(int, stems)) if numbered else None)


def _open_array(path: Path) -> SampleFiles:
    arrays = read_arrays(path, ("images", "arr_0", "seeds"))  # arr_0: as ADM writes it
    seeds = arrays.pop("seeds", None)
    if not arrays:
        raise ValueError(f"{path}: no samples, expected images or arr_0")
    if seeds is not None and seeds.dtype.kind not in "iu":
        raise ValueError(f"{path}: seeds of {seeds.dtype}, expected integers")
    array = next(iter(arrays.values()))
    named = None if seeds is None or seeds.shape != array.shape[:1] else seeds.tolist()
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] in (1, 3):
        pixels = torch.from_numpy(array).permute(0, 3, 1, 2)
        return SampleFiles([from_uint8(part) for part in pixels.split(1000)], len(array), named)
    if array.dtype.kind == "f" and array.ndim == 4 and array.shape[2:] == (1, 1):
        return SampleFiles([torch.from_numpy(array)], len(array), named)
    raise ValueError(
        f"{path}: expected uint8 images [N, H, W, 1 or 3] or points [N, D, 1, 1], got {array.dtype} {array.shape}"
    )


def evaluate(
    evaluator: Evaluator, images: Tensor, seeds: range, network_evaluations: int, space: SampleSpace
) -> list[dict[str, Any]]:
    """The records of the metrics of the samples of ``seeds``, in the first process; see :meth:`Evaluator.results`.

    Args:
        evaluator: the metrics.
        images: this process's rows [N, C, H, W] of the samples.
        seeds: the seeds of all processes.
        network_evaluations: network evaluations per sample.
        space: the inputs of the seeds.
    """
    values = evaluator([images], distributed=True, prompts=prompts_of(space.prompts, seeds), seeds=seeds_here(seeds))
    return evaluator.results(values, len(seeds), [seeds[0], seeds[-1]], network_evaluations, space.drawn_classes)


def check_inputs(evaluator: Evaluator, space: SampleSpace) -> None:
    """Check that the samples of ``space`` are made from what the metrics compare them with.

    Raises:
        ValueError: for a metric that compares them with prompts or degraded images, which its inputs have not.
    """
    for name, metric in evaluator.metrics.items():
        if metric.reads in ("similarities", "of_prompts") and space.prompts is None:
            raise ValueError(f"metrics: {name} reads the prompts of images, and this data has none: remove {name}")
        if metric.reads == "pairs" and space.conditions is None:
            raise ValueError(
                f"metrics: {name} compares samples with what they restore, and this network takes no degraded images: "
                f"remove {name}, or use a network that does"
            )


def seeds_here(seeds: range) -> list[int]:
    """This process's rows of ``seeds``."""
    return [seeds[place] for place in process_rows(len(seeds))]


def prompts_of(prompts: Sequence[str] | None, seeds: range) -> list[str] | None:
    """The prompts of this process's rows of ``seeds``."""
    return None if prompts is None else [prompts[seed % len(prompts)] for seed in seeds_here(seeds)]


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
    """Print each value with its features, reference, samples, seeds and evaluations; no number is folded."""
    table = Table()
    table.add_column("metric", min_width=8, overflow="fold")
    table.add_column(
        "value", justify="right", no_wrap=True, min_width=max(map(len, map(_value_of, records)), default=0)
    )
    table.add_column("of", min_width=10, overflow="fold")
    for record in records:
        seeds, evaluations = record["seeds"], record["network_evaluations"]
        conditions = (
            f"{record['samples']:,} samples",
            "seeds not known" if seeds is None else f"seeds {seeds[0]} to {seeds[1]}",
            *(() if evaluations is None else (f"{evaluations} evaluations each",)),
            *(() if record["classes"] is None else (f"classes: {record['classes']}",)),
            record["features"],
            f"against {record['reference']}",
        )
        table.add_row(escape(record["title"]), _value_of(record), escape("; ".join(conditions)))
    Console().print(table)


def _value_of(record: dict[str, Any]) -> str:
    return format_value(record["value"], digits=5)

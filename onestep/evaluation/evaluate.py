"""Metrics of samples, with a record of where each value came from; and the checks of what a run is to measure."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor

from onestep.config import instantiate
from onestep.data.dataset import ImageDataset
from onestep.data.edm_zip import EDMZip
from onestep.data.image_folder import ImageFolder
from onestep.engine.settings import EvaluationSettings
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.extraction import Reference
from onestep.metrics.statistics import Moments
from onestep.processes import share_of


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


def build_evaluator(config: DictConfig, features: Any, data: Reference | None, device: torch.device) -> Evaluator:
    """The metrics of ``config.metrics`` against the published moments that ``config.reference`` names, else ``data``.

    Args:
        config: of train.py or sample.py.
        features: the node that describes the feature network; None for points.
        data: the real images.
        device: where the feature networks run.

    Raises:
        ValueError: if there are no real images.
    """
    reference = data if config.reference is None else Moments.load(config.reference)
    if reference is None:
        raise ValueError(
            "metrics need run=..., or data=... and features=...; reference=..., an .npz of moments, replaces the data"
        )
    metrics = dict(instantiate(config.get("metrics") or {}))
    return Evaluator(instantiate(features), metrics, reference, device, config.features_cache)


def evaluate(
    evaluator: Evaluator, images: Tensor, seeds: range, network_evaluations: int, data: ImageDataset | None
) -> list[dict[str, Any]]:
    """A record of each value of the samples of ``seeds``, see :meth:`Evaluator.results`; in the first process.

    Args:
        evaluator: what measures.
        images: this process's share of them [N, C, H, W].
        seeds: those of all processes.
        network_evaluations: evaluations of the network a sample.
        data: what gave the prompts; None for samples of no prompts.
    """
    values = evaluator([images], shared=True, prompts=prompts_of(data, seeds))
    return evaluator.results(values, len(seeds), [seeds[0], seeds[-1]], network_evaluations)


def prompts_of(data: ImageDataset | None, seeds: range) -> list[str] | None:
    """The prompt of each sample of this process's share of ``seeds``; None where ``data`` has no prompts."""
    prompts: list[str] | None = getattr(data, "prompts", None)
    return None if prompts is None else [prompts[seeds[place] % len(prompts)] for place in share_of(len(seeds))]


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

"""Comparison of presets: counted FLOPs, measured time and memory, and tables of both."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from onestep.profiling.measure import peak_memory, seconds_per_iteration
from onestep.profiling.passes import Count, count
from onestep.profiling.revision import extract, subject_of


class Preset(NamedTuple):
    """Overrides of ``onestep train``, and the package's git revision; None for the current code."""

    overrides: list[str]
    revision: str | None = None


def profile(
    presets: Sequence[Preset], network: str, batch_size: int, iterations: int, peak: float | None
) -> list[dict[str, Any]]:
    """Count the FLOPs of an iteration of each of ``presets``, and measure its time and memory.

    Args:
        presets: measured interleaved, in one process.
        network: one of :data:`onestep.profiling.subject.NETWORKS`.
        batch_size: images per iteration.
        iterations: number of measured iterations, after one to warm up; 0 only counts FLOPs.
        peak: TFLOP/s of the device; None if unknown.

    Returns:
        A record of each preset.

    Raises:
        ValueError: for a preset that cannot be built, or an unknown revision.
    """
    with tempfile.TemporaryDirectory() as folder:
        sources = [None if preset.revision is None else extract(preset.revision, Path(folder)) for preset in presets]
        subjects = [subject_of(source, network, preset.overrides, batch_size)
                    for source, preset in zip(sources, presets, strict=True)]  # fmt: skip
        records = [describe(count(subject)) | {"overrides": preset.overrides}
                   | ({} if preset.revision is None else {"revision": preset.revision})
                   for subject, preset in zip(subjects, presets, strict=True)]  # fmt: skip
        if not iterations:
            return records
        for record, seconds in zip(records, seconds_per_iteration(subjects, iterations), strict=True):
            record |= {"seconds_per_iteration": seconds.clock, "processor_seconds_per_iteration": seconds.processor,
                       "images_per_second": batch_size / seconds.clock}  # fmt: skip
            if peak is not None:
                record["fraction_of_peak"] = record["gflop_per_image"] * record["images_per_second"] / 1000 / peak
        del subjects
        for record, source, preset in zip(records, sources, presets, strict=True):
            record["peak_memory_gb"] = peak_memory(network, preset.overrides, batch_size, source)
    return records


def describe(counted: Count) -> dict[str, Any]:
    """A record of the counted FLOPs."""
    return {
        "batch_size": counted.batch_size,
        "forward_equivalents": counted.forward_equivalents,
        "gflop_per_image": counted.gflop_per_image,
        "gflop_of_a_forward": counted.forward / counted.batch_size / 1e9,
        "passes": counted.lines(),
    }


def show(records: list[dict[str, Any]], console: Console) -> None:
    """Print the passes of each of ``records``, and a table that compares the records."""
    names = [" ".join([*record["overrides"], f"@{record['revision']}" if "revision" in record else ""]).strip()
             or "the defaults" for record in records]  # fmt: skip
    for name, record in zip(names, records, strict=True):
        table = Table("update of", "pass of", "part", "differentiated by", title=f"{name}: the passes of an iteration")
        for column in ("batch", "times", "forward", "backward"):
            table.add_column(column, justify="right")
        for line in record["passes"]:
            texts, costs = list(line.values())[:6], (line["forward"], line["backward"])
            table.add_row(*map(str, texts), *(f"{cost:.2f}" for cost in costs))
        console.print(table)
    table = Table("", *names, *(["ratio"] if len(records) == 2 else []))
    for key in ("forward_equivalents", "gflop_per_image", "seconds_per_iteration", "processor_seconds_per_iteration",
                "images_per_second", "peak_memory_gb", "fraction_of_peak"):  # fmt: skip
        values = [record[key] for record in records if key in record]
        if values:
            ratio = [f"{values[0] / values[1]:.3f}"] if len(values) == 2 else []
            table.add_row(key.replace("_", " "), *(f"{value:,.2f}" for value in values), *ratio)
    console.print(table)

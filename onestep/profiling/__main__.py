"""``python -m onestep.profiling``: what a preset's iteration costs, counted and measured, alone or against another."""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from rich.console import Console
from rich.table import Table

from onestep.config import explain
from onestep.profiling.measure import peak_memory, peak_tflops, seconds_per_iteration
from onestep.profiling.passes import Count, count
from onestep.profiling.revision import extract, subject_of
from onestep.profiling.subject import NETWORKS

_EXAMPLES = """
  python -m onestep.profiling                                        f-distill on EDM's CIFAR-10 network
  python -m onestep.profiling objective=sid precision=no             any preset, any override of train.py
  python -m onestep.profiling objective=sid --against objective=sida two presets, in turn in one process
  python -m onestep.profiling --against-revision HEAD~3              this revision and another one
  python -m onestep.profiling --count                                nothing is computed: passes and FLOPs alone
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m onestep.profiling", description=__doc__, epilog=f"examples:\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="overrides of train.py, such as objective=sid"
    )
    parser.add_argument("--against", nargs="*", metavar="KEY=VALUE", help="compare with these overrides")
    parser.add_argument("--against-revision", metavar="REV", help="compare with this git revision of the package")
    networks = "ddpmpp: EDM's CIFAR-10 DDPM++ with random weights; digits: the bundled teacher"
    parser.add_argument("--network", choices=sorted(NETWORKS), default="ddpmpp", help=networks)
    parser.add_argument("--batch-size", type=int, default=4, help="images an iteration (default 4)")
    parser.add_argument(
        "--iterations", type=int, default=3, help="iterations to measure, after one to warm up (default 3)"
    )
    parser.add_argument("--count", action="store_true", help="count the FLOPs, and measure nothing")
    parser.add_argument("--peak-tflops", type=float, help="the GPU's peak, where it is not known by its name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    options = parser.parse_args(arguments)
    for name in ("batch_size", "iterations"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    return options


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Count and measure what the ``options`` name; a record of each."""
    with tempfile.TemporaryDirectory() as folder:
        rivals: list[tuple[list[str], Path | None]] = [(options.overrides, None)]
        if options.against is not None or options.against_revision is not None:
            sources = None if options.against_revision is None else extract(options.against_revision, Path(folder))
            rivals.append((options.overrides if options.against is None else options.against, sources))
        subjects = [subject_of(sources, options.network, own, options.batch_size) for own, sources in rivals]
        records = [describe(count(subject)) | {"overrides": list(own)} for subject, (own, _) in zip(
            subjects, rivals, strict=True)]  # fmt: skip
        if options.against_revision is not None:
            records[1]["revision"] = options.against_revision
        if options.count:
            return records
        peak = peak_tflops(options.peak_tflops)
        for record, seconds in zip(records, seconds_per_iteration(subjects, options.iterations), strict=True):
            record |= {"seconds_per_iteration": seconds.clock, "processor_seconds_per_iteration": seconds.processor,
                       "images_per_second": options.batch_size / seconds.clock}  # fmt: skip
            if peak is not None:
                record["share_of_peak"] = record["gflop_per_image"] * record["images_per_second"] / 1000 / peak
        del subjects
        for record, (own, sources) in zip(records, rivals, strict=True):
            record["peak_memory_gb"] = peak_memory(options.network, own, options.batch_size, sources)
    return records


def describe(counted: Count) -> dict[str, Any]:
    """A record of what was counted."""
    return {
        "batch_size": counted.batch_size,
        "forward_equivalents": counted.forward_equivalents,
        "gflop_per_image": counted.gflop_per_image,
        "gflop_of_a_forward": counted.forward / counted.batch_size / 1e9,
        "passes": counted.lines(),
    }


def show(records: list[dict[str, Any]], console: Console) -> None:
    """Print the passes of each of ``records``, and all of them beside each other."""
    names = [" ".join([*record["overrides"], f"@{record['revision']}" if "revision" in record else ""]).strip()
             or "the defaults" for record in records]  # fmt: skip
    for name, record in zip(names, records, strict=True):
        table = Table("update of", "pass of", "part", "differentiated by", title=f"{name}: the passes of an iteration")
        for column in ("batch", "times", "forward", "backward"):
            table.add_column(column, justify="right")
        for line in record["passes"]:
            texts, figures = list(line.values())[:6], (line["forward"], line["backward"])
            table.add_row(*map(str, texts), *(f"{figure:.2f}" for figure in figures))
        console.print(table)
    table = Table("", *names, *(["ratio"] if len(records) == 2 else []))
    for key in ("forward_equivalents", "gflop_per_image", "seconds_per_iteration", "processor_seconds_per_iteration",
                "images_per_second", "peak_memory_gb", "share_of_peak"):  # fmt: skip
        values = [record[key] for record in records if key in record]
        if values:
            ratio = [f"{values[0] / values[1]:.3f}"] if len(values) == 2 else []
            table.add_row(key.replace("_", " "), *(f"{value:,.2f}" for value in values), *ratio)
    console.print(table)


def main(arguments: list[str]) -> None:
    """Run the command line; a user's mistake ends in one readable line."""
    options = parse(arguments)
    try:
        records = run(options)
    except (ValueError, HydraException) as error:
        sys.exit(f"error: {explain(error)}")
    show(records, Console())
    if options.json is not None:
        report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "network": options.network,
                  "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                  "subjects": records}  # fmt: skip
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

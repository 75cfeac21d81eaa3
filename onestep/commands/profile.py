"""``onestep profile``: the cost of an iteration of a preset, counted and measured, alone or against another preset.

With ``--memory`` it predicts the peak memory of a training, without a GPU.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from onestep.files import write_text
from onestep.profiling.fit import show_memory
from onestep.profiling.measure import peak_tflops
from onestep.profiling.report import Preset, profile, show
from onestep.profiling.subject import NETWORKS

_EXAMPLES = """examples:

  onestep profile                                        f-distill on EDM's CIFAR-10 network
  onestep profile objective=sid precision=no             any preset, any override of onestep train
  onestep profile objective=sid --against objective=sida two presets, in turn in one process
  onestep profile --against-revision HEAD~3              this revision and another one, in a clone of the repository
  onestep profile --count                                passes and FLOPs only, without computation
  onestep profile --memory --card 24 experiment=sdxl_dmd2 data.path=images.parquet
                                                         the memory of onestep train, and what fits 24 GiB
"""


def main(arguments: Sequence[str]) -> None:
    """Profile presets and print the results.

    Raises:
        ValueError, HydraException: as :func:`onestep.profiling.report.profile` and
            :func:`onestep.profiling.fit.trials`.
    """
    options = _parse(arguments)
    if options.memory:
        records = show_memory(options.overrides, options.card, Console())
        if options.json is not None:
            report = {"torch": torch.__version__, "card_gib": options.card, "predictions": records}
            write_text(options.json, json.dumps(report, indent=2) + "\n")
        return
    presets = [Preset(options.overrides)]
    if options.against is not None or options.against_revision is not None:
        overrides = options.overrides if options.against is None else options.against
        presets.append(Preset(overrides, options.against_revision))
    iterations = 0 if options.count else options.iterations
    peak = peak_tflops(options.peak_tflops)
    records = profile(presets, options.network, options.batch_size, iterations, peak)
    show(records, Console())
    if options.json is not None:
        report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "network": options.network,
                  "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                  "subjects": records}  # fmt: skip
        write_text(options.json, json.dumps(report, indent=2) + "\n")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "onestep profile", description="Count and measure the cost of an iteration of a preset.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="overrides of onestep train, such as objective=sid"
    )
    parser.add_argument("--against", nargs="*", metavar="KEY=VALUE", help="compare with these overrides")
    parser.add_argument("--against-revision", metavar="REV", help="compare with this git revision of the package")
    networks = "ddpmpp: EDM's CIFAR-10 DDPM++ with random weights; digits: the bundled teacher"
    parser.add_argument("--network", choices=sorted(NETWORKS), default="ddpmpp", help=networks)
    parser.add_argument("--batch-size", type=int, default=4, help="images per iteration (default 4)")
    parser.add_argument(
        "--iterations", type=int, default=3, help="iterations to measure, after one to warm up (default 3)"
    )
    parser.add_argument("--count", action="store_true", help="count the FLOPs without measurements")
    parser.add_argument("--peak-tflops", type=float, help="the GPU's peak, if its name is not known")
    parser.add_argument("--memory", action="store_true", help="predict the peak memory of onestep train, with its own "
                        "network and batch; no GPU, weights or data are needed")  # fmt: skip
    parser.add_argument("--card", type=float, metavar="GIB", help="with --memory: find settings that fit this memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    options = parser.parse_args(arguments)
    for name in ("batch_size", "iterations"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    if options.memory:
        taken = {"--card", "--json", "--memory"}
        others = [word for word in arguments if word.startswith("--") and word.partition("=")[0] not in taken]
        if others:
            parser.error(f"--memory predicts onestep train as it is, without {', '.join(others)}")
    if options.card is not None and not (options.memory and 0 < options.card < math.inf):
        parser.error(f"--card is for --memory, and above 0, got {options.card:g}")
    return options

"""Milliseconds of a batch of a generator: PyTorch eager and compiled, and onnxruntime, in turn in one process.

    python benchmarks/latency.py [--generator fashion] [--batches 1 16 64] [--rounds 30] [--threads 1] [--no-compile]

"Network" is the generator on inputs that are ready; "end to end" is from seeds to pixels: noise, network, 8 bits. Each
round calls every way once, in another order, and the median of a way's rounds is printed with its ratio to eager.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from onestep.build.deployment import Deployment
from onestep.export.compare import DType, Runner
from onestep.export.formats import export_graph, onnx_runner
from onestep.export.graph import GeneratorGraph
from onestep.images import to_uint8


def ways(graph: GeneratorGraph, folder: Path, compiled: bool, dtypes: list[DType]) -> dict[str, Runner]:
    """What runs the generator, by name."""
    found: dict[str, Runner] = {"eager": lambda inputs: graph(*inputs.values())}
    if compiled:
        program = torch.compile(graph)
        found["torch.compile"] = lambda inputs: program(*inputs.values())
    for dtype in dtypes:
        export_graph(graph, "onnx", dtype, folder / dtype)
        found[f"onnxruntime {dtype}"] = onnx_runner(folder / dtype / "model.onnx")
    return found


def milliseconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median time of each of the ``calls``, which are made in turn; the first three are to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for number in range(rounds + 3):
        random.shuffle(order)
        for name in order:
            started = time.perf_counter()
            calls[name]()
            if number >= 3:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def end_to_end(graph: GeneratorGraph, run: Runner, seeds: range) -> Tensor:
    """Pixels of ``seeds``."""
    return to_uint8(run(graph.inputs(seeds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", default="fashion", help="as of onestep export")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", choices=get_args(DType), default=list(get_args(DType)))
    parser.add_argument("--no-compile", dest="compiled", action="store_false", help="without torch.compile")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    graph = Deployment(options.generator).graph
    table = Table("", "batch", "way", "ms", "ratio to eager", title=f"{options.generator}, {options.threads} threads")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runners = ways(graph, Path(folder), options.compiled, options.dtypes)
        for batch in options.batches:
            inputs = graph.inputs(range(batch))
            kinds: dict[str, dict[str, Callable[[], object]]] = {
                "network": {name: partial(run, inputs) for name, run in runners.items()},
                "end to end": {name: partial(end_to_end, graph, run, range(batch)) for name, run in runners.items()},
            }
            for kind, calls in kinds.items():
                medians = milliseconds(calls, options.rounds)
                for name, median in medians.items():
                    table.add_row(kind, str(batch), name, f"{median:.2f}", f"{median / medians['eager']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()

"""Images a second of a one-step generator: sample.py from end to end against its bare network, in turn in one run.

    python benchmarks/sampling.py [--network digits] [--count 2000] [--batch-size 250] [--rounds 3] [--precision bf16]

The bare network is called on the same latents again and again. End to end is what `python sample.py` does: latents from
seeds, the network, quantisation, and PNG files or an array on the disk. With --fid it also scores what it draws, start
and loading included, by the Frechet distance in the features of the digits classifier; in Inception's, which has to be
downloaded: python sample.py run=... count=50000 features=inception 'metrics=[fid50k]'.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from onestep.build.sampling import sample
from onestep.config import compose
from onestep.denoiser import map_condition
from onestep.models.generator import Generator
from onestep.models.loading import load_teacher
from onestep.profiling.subject import random_teacher
from onestep.seeding import seeded_inputs


def bare(folder: Path, options: argparse.Namespace) -> Callable[[], float]:
    """The rate of the network alone."""
    accelerator = Accelerator(mixed_precision=options.precision, cpu=options.cpu)
    generator = Generator.from_pretrained(folder).to(accelerator.device)
    network = generator.denoiser
    latents, condition = seeded_inputs(list(range(options.batch_size)), network.image_shape, network.label_dim)
    latents = latents.to(accelerator.device)
    condition = map_condition(lambda tensor: tensor.to(accelerator.device), condition)
    batches = options.count // options.batch_size

    @torch.no_grad()
    def rate() -> float:
        started = time.perf_counter()
        for _ in range(batches):
            with accelerator.autocast():
                generator(latents, condition)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return batches * options.batch_size / (time.perf_counter() - started)

    return rate


def end_to_end(folder: Path, options: argparse.Namespace, *overrides: str) -> Callable[[], float]:
    """The rate of sample.py's drawing and writing; with metrics that of all that it does."""
    count = options.count - options.count % options.batch_size
    settings = [f"checkpoint={folder}", f"count={count}", f"batch_size={options.batch_size}",
                f"precision={options.precision}", f"device={'cpu' if options.cpu else 'auto'}", *overrides]  # fmt: skip

    def rate() -> float:
        with tempfile.TemporaryDirectory() as place:
            config = compose("sample", [*settings, f"save_to={place}"])
            started = time.perf_counter()
            result: dict[str, Any] = sample(config)
            whole = count / (time.perf_counter() - started)
        return whole if "fid" in result else float(result["samples_per_second"])

    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("ddpmpp", "digits"), default="digits")
    for name, default in (("count", 2000), ("batch-size", 250), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--cpu", action="store_true", help="although there is a GPU")
    parser.add_argument("--fid", action="store_true", help="score the digits too")
    options = parser.parse_args()
    if options.fid and options.network != "digits":
        parser.error("--fid is for --network digits, whose features are in the package")
    with tempfile.TemporaryDirectory() as folder:
        teacher, sigma = (
            (load_teacher("digits", 1.0), 1.0) if options.network == "digits" else (random_teacher(1.0), 2.5)
        )
        Generator(teacher, sigma).save_pretrained(folder)
        del teacher
        place = Path(folder)
        rates = {
            "network alone": bare(place, options),
            "to PNG files": end_to_end(place, options, "format=png"),
            "to an array": end_to_end(place, options, "format=npz"),
        }
        if options.fid:
            scored = ("format=npz", "data=digits", "features=digits", "metrics=[fid]", "features_cache=null")
            rates["to an array and scored"] = end_to_end(place, options, *scored)
        found: dict[str, list[float]] = {name: [] for name in rates}
        for number in range(options.rounds + 1):
            for name, rate in rates.items():
                if (value := rate()) and number:  # the first round does not count
                    found[name].append(value)
    medians = {name: statistics.median(values) for name, values in found.items()}
    table = Table("", "images a second", "of the network's", title=f"{options.network}, {options.count} images")
    for name, median in medians.items():
        table.add_row(name, f"{median:,.1f}", f"{median / medians['network alone']:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()

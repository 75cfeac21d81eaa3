"""Rate of drawing samples against a plain loop over batches, with the same network, batches and seeds.

    python benchmarks/drawing.py [--count 2000] [--batch-size 10 50 250] [--repeats 9]

The network is the digits teacher as a one-step generator, so small that everything else counts. The loop is that of
published scripts: an rng per seed, the network, and nothing else. Both run in turn in one process on one thread of the
CPU, in seconds of the processor; the images are the same bit for bit. The last column is the median of the ratios.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import Tensor

from onestep.evaluation.generate import SampleSpace, generate_local
from onestep.models.generator import Generator
from onestep.models.loading import load_teacher
from onestep.profiling.measure import timed


@torch.no_grad()
def plain_loop(generator: Generator, count: int, batch_size: int) -> Tensor:
    """The images [count, C, H, W] of the seeds 0, 1, ..."""
    images = []
    for seeds in torch.arange(count).split(batch_size):
        rngs = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        latents = torch.stack([torch.randn(generator.denoiser.image_shape, generator=rng) for rng in rngs])
        classes = torch.stack([torch.randint(10, (), generator=rng) for rng in rngs])
        images.append(generator(latents, {"labels": torch.eye(10)[classes]}))
    return torch.cat(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[10, 50, 250])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    accelerator, network = Accelerator(cpu=True), load_teacher("digits", 1.0)
    generator, space = Generator(network, sigma_init=2.5).eval().requires_grad_(False), SampleSpace.of(network)
    table = Table("images per batch", "plain loop, images/s", "onestep, images/s", "relative rate")
    for batch_size in options.batch_size:

        def drawn(size: int = batch_size) -> Tensor:
            return torch.cat(list(generate_local(generator, range(options.count), size, space, accelerator)))

        def plain(size: int = batch_size) -> Tensor:
            return plain_loop(generator, options.count, size)

        assert torch.equal(drawn(), plain())  # also the warm-up
        ways: list[Callable[[], Tensor]] = [plain, drawn]
        seconds = [[timed(way).processor for way in ways] for _ in range(options.repeats)]
        rates = [options.count / statistics.median(column) for column in zip(*seconds, strict=True)]
        ratio = statistics.median(one / other for one, other in seconds)
        table.add_row(str(batch_size), *(f"{rate:,.0f}" for rate in rates), f"{ratio:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()

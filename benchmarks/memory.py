"""The peak memory of SiD's iteration against a plain loop of the same algorithm and networks.

    python benchmarks/memory.py [--batch-size 4]

Each runs in a process of its own for two iterations of EDM's CIFAR-10 network with random weights on one thread. The
plain loop is that of SiD's algorithm (arXiv 2404.04057): the fake score's update on new samples without a graph, then
the generator's, with Adam and the moving average. Prints the peak, and the memory before the first iteration.
"""

import argparse
import copy
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn


def memory(name: str) -> float:
    """``VmRSS``, the memory of this process, or ``VmHWM``, its peak, in MB."""
    (found,) = re.findall(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found) / 1024


def package(batch_size: int) -> Callable[[], object]:
    """An iteration of ``objective=sid``."""
    from onestep.profiling.measure import run_iteration
    from onestep.profiling.subject import Subject

    overrides = ["objective=sid", "precision=no", "device=cpu", "fake_score.steps=1"]
    subject = Subject("ddpmpp", overrides, batch_size)
    return lambda: run_iteration(subject)


def plain(batch_size: int) -> Callable[[], object]:
    """An iteration of the plain loop."""
    from onestep.models.edm.denoiser import EDMDenoiser

    shape = (3, 32, 32)
    options = {"model_channels": 128, "channel_mult": [2, 2, 2], "num_blocks": 4, "attn_resolutions": [16]}
    teacher = EDMDenoiser(shape, options=options, preconditioning="vp").eval().requires_grad_(False)
    generator, fake_score = (copy.deepcopy(teacher).requires_grad_(True) for _ in range(2))
    average = copy.deepcopy(teacher)
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-5, fused=True) for network in (fake_score, generator)]

    def noised(x: Tensor) -> tuple[Tensor, Tensor]:
        sigma = torch.rand(batch_size) * 10 + 0.1
        return x + sigma[:, None, None, None] * torch.randn_like(x), sigma

    def generate() -> Tensor:
        level = torch.full((batch_size,), 2.5)
        return generator(2.5 * torch.randn(batch_size, *shape), level)

    def step(loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    def iteration() -> None:
        with torch.no_grad():
            x = generate()
        step((fake_score(*noised(x)) - x).square().mean(), fake_score, optimizers[0])
        fake_score.requires_grad_(False)
        x = generate()
        x_sigma, sigma = noised(x)
        x0_teacher, x0_fake = teacher(x_sigma, sigma), fake_score(x_sigma, sigma)
        difference = x0_teacher - x0_fake
        step((difference * (x0_fake - x) + 0.2 * difference.square()).mean(), generator, optimizers[1])
        fake_score.requires_grad_(True)
        with torch.no_grad():
            for mean, value in zip(average.parameters(), generator.parameters(), strict=True):
                mean.lerp_(value, 0.01)

    return iteration


def measure(build: Callable[[int], Callable[[], object]], batch_size: int) -> tuple[float, float]:
    """The memory before the first iteration, and the peak."""
    torch.set_num_threads(1)
    iteration = build(batch_size)
    before = memory("VmRSS")
    for _ in range(2):
        iteration()
    return before, memory("VmHWM")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the peak memory of objective=sid.")
    parser.add_argument("--batch-size", type=int, default=4)
    batch_size = parser.parse_args().batch_size
    peaks = []
    for name, build in (("onestep", package), ("plain loop", plain)):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            before, peak = process.submit(measure, build, batch_size).result()
        print(f"{name:11} {peak:7.0f} MB, {before:5.0f} before the first iteration")
        peaks.append(peak)
    print(f"ratio       {peaks[0] / peaks[1]:7.3f}")


if __name__ == "__main__":
    main()

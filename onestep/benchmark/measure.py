"""How long cycles take, and how much memory: subjects in turn, so that a machine's moods meet all of them alike."""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from tqdm.auto import tqdm

from onestep.benchmark.revision import subject_of
from onestep.benchmark.subject import Subject

#: Dense bf16 TFLOP/s by what a GPU's name holds, from the makers' data sheets.
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "4090": 165, "A6000": 155}


def in_turn(actions: Sequence[Callable[[], object]], rounds: int, title: str = "measuring") -> list[list[float]]:
    """The seconds of each of ``actions``, called in turn ``rounds`` times after one round that does not count."""
    seconds: list[list[float]] = [[] for _ in actions]
    for number in tqdm(range(rounds + 1), desc=title, leave=False):
        for action, taken in zip(actions, seconds, strict=True):
            started = time.perf_counter()
            action()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                taken.append(time.perf_counter() - started)
    return seconds


def run_cycle(subject: Subject) -> None:
    """One cycle, whose diagnostics are dropped."""
    for _ in subject.cycle():
        pass


def seconds_a_cycle(subjects: Sequence[Subject], cycles: int) -> list[float]:
    """The median seconds of a cycle of each of ``subjects``, which take turns."""
    found = in_turn([lambda one=one: run_cycle(one) for one in subjects], cycles)  # type: ignore[misc]
    return [statistics.median(taken) for taken in found]


def peak_memory(network: str, overrides: Sequence[str], batch_size: int, sources: Path | None) -> float:
    """The most GB that two cycles take: of the GPU's memory, or of a process of their own on the CPU."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own_process:
        return own_process.submit(_peak_memory, network, overrides, batch_size, sources).result()


def _peak_memory(network: str, overrides: Sequence[str], batch_size: int, sources: Path | None) -> float:
    subject = subject_of(sources, network, overrides, batch_size)
    for _ in range(2):
        run_cycle(subject)
    if subject.parts.accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # in KiB, on Linux


def peak_tflops(given: float | None) -> float | None:
    """The GPU's peak: the one that is ``given``, or a data sheet's; None on the CPU and for a GPU that is not known."""
    if given is not None or not torch.cuda.is_available():
        return given
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)

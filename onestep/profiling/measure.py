"""How long iterations take, and how much memory: subjects in turn, so that a machine's moods meet all of them alike."""

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from onestep.profiling.revision import subject_of
from onestep.profiling.subject import Subject

#: Dense bf16 TFLOP/s by what a GPU's name holds, from the makers' data sheets.
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "4090": 165, "A6000": 155}


class Seconds(NamedTuple):
    """What something took: on the clock, and of this process on its processors, which other jobs do not lengthen."""

    clock: float
    processor: float


def timed(action: Callable[[], object]) -> Seconds:
    """What ``action`` takes, to the end of what it has a GPU do."""
    clock, processor = time.perf_counter(), time.process_time()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Seconds(time.perf_counter() - clock, time.process_time() - processor)


def in_turn(actions: Sequence[Callable[[], object]], rounds: int, title: str = "measuring") -> list[Seconds]:
    """The medians of each of ``actions``, called in turn ``rounds`` times after one round that does not count."""
    taken: list[list[Seconds]] = [[] for _ in actions]
    for _ in tqdm(range(rounds + 1), desc=title, leave=False):
        for action, seconds in zip(actions, taken, strict=True):
            seconds.append(timed(action))
    return [Seconds(*map(statistics.median, zip(*seconds[1:], strict=True))) for seconds in taken]


def run_iteration(subject: Subject) -> None:
    """One iteration, whose diagnostics are dropped."""
    for _ in subject.iteration():
        pass


def seconds_per_iteration(subjects: Sequence[Subject], iterations: int) -> list[Seconds]:
    """What an iteration of each of ``subjects`` takes, which take turns."""
    return in_turn([partial(run_iteration, subject) for subject in subjects], iterations)


def peak_memory(network: str, overrides: Sequence[str], batch_size: int, sources: Path | None) -> float:
    """The most GB that two iterations take: of the GPU's memory, or of a process of their own on the CPU."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own_process:
        return own_process.submit(_peak_memory, network, overrides, batch_size, sources).result()


def _peak_memory(network: str, overrides: Sequence[str], batch_size: int, sources: Path | None) -> float:
    subject = subject_of(sources, network, overrides, batch_size)
    for _ in range(2):
        run_iteration(subject)
    if subject.parts.run.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    # Linux's own figure of this program: what getrusage says begins with the memory of the process that started it.
    (peak,) = re.findall(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(peak) * 1024 / 1e9


def peak_tflops(given: float | None) -> float | None:
    """The GPU's peak: the one that is ``given``, or a data sheet's; None on the CPU and for a GPU that is not known."""
    if given is not None or not torch.cuda.is_available():
        return given
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)

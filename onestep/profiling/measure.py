"""Time and memory of iterations. Subjects are measured interleaved, so that load affects all of them alike."""

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

#: Dense bf16 TFLOP/s by a part of the GPU's name, from the manufacturers' data sheets.
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "4090": 165, "A6000": 155}


class Seconds(NamedTuple):
    """Wall-clock time and this process's CPU time, in seconds; other jobs do not affect the CPU time."""

    clock: float
    processor: float


def timed(action: Callable[[], object]) -> Seconds:
    """The duration of ``action``, including its work on the GPU."""
    clock, processor = time.perf_counter(), time.process_time()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Seconds(time.perf_counter() - clock, time.process_time() - processor)


def interleaved(actions: Sequence[Callable[[], object]], repeats: int, title: str = "measuring") -> list[Seconds]:
    """The median durations of ``actions``, called in turn ``repeats`` times after one warm-up call each."""
    durations: list[list[Seconds]] = [[] for _ in actions]
    for _ in tqdm(range(repeats + 1), desc=title, leave=False):
        for action, seconds in zip(actions, durations, strict=True):
            seconds.append(timed(action))
    return [Seconds(*map(statistics.median, zip(*seconds[1:], strict=True))) for seconds in durations]


def run_iteration(subject: Subject) -> None:
    """Run one iteration and discard its diagnostics."""
    for _ in subject.iteration():
        pass


def seconds_per_iteration(subjects: Sequence[Subject], iterations: int) -> list[Seconds]:
    """The median duration of an iteration of each of ``subjects``, measured interleaved."""
    return interleaved([partial(run_iteration, subject) for subject in subjects], iterations)


def peak_memory(network: str, overrides: Sequence[str], batch_size: int, sources: Path | None) -> float:
    """The peak memory of two iterations in a new process, in GB: of the GPU, or of the process on the CPU."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak_memory, network, overrides, batch_size, sources).result()


def _peak_memory(network: str, overrides: Sequence[str], batch_size: int, sources: Path | None) -> float:
    subject = subject_of(sources, network, overrides, batch_size)
    for _ in range(2):
        run_iteration(subject)
    if subject.parts.run.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    # Linux's high-water mark of this process: getrusage's includes the memory of the parent at the fork.
    (peak,) = re.findall(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(peak) * 1024 / 1e9


def peak_tflops(given: float | None) -> float | None:
    """The GPU's peak TFLOP/s: ``given``, or the data sheet's; None on the CPU and for an unknown GPU."""
    if given is not None or not torch.cuda.is_available():
        return given
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)

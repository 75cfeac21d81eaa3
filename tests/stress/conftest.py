"""Runs in processes of their own, to which things are done; tables of what they survived and of how they differ."""

from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess

import pytest
from omegaconf import DictConfig

from onestep.build.distillation import distill
from tests.helpers.harness import PROCESSES

_table: list[tuple[str, int, int, str]] = []
_differences: list[tuple[str, float]] = []

StartRun = Callable[[DictConfig], BaseProcess]
Survived = Callable[[str, int, int, str], None]
Differs = Callable[[str, float], None]


@pytest.fixture
def start_run() -> Iterator[StartRun]:
    """Starts a distillation in a process of its own."""
    forkserver.ensure_running()  # which imports what it is to fork while the test prepares
    started: list[BaseProcess] = []

    def start(config: DictConfig) -> BaseProcess:
        started.append(PROCESSES.Process(target=distill, args=(config,)))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def survived() -> Survived:
    """Enters a row: the fault, how often it was tried and survived, and the work that was lost."""
    return lambda fault, tried, survived, lost: _table.append((fault, tried, survived, lost))


@pytest.fixture
def differs() -> Differs:
    """Enters a row: a layout, and the largest difference of any weight."""
    return lambda layout, difference: _differences.append((layout, difference))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of faults, and that of layouts."""
    if _table:
        terminalreporter.write_line("\n| fault | tried | survived | lost work |\n| --- | ---: | ---: | --- |")
        for fault, tried, lived, lost in _table:
            terminalreporter.write_line(f"| {fault} | {tried} | {lived} | {lost} |")
    if _differences:
        terminalreporter.write_line("\n| layout | largest difference of any weight |\n| --- | ---: |")
        for layout, difference in _differences:
            terminalreporter.write_line(f"| {layout} | {difference:.0e} |")

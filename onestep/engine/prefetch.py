"""Prefetching of an iterator's next item in a thread."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
_END = object()


def prefetch(
    items: Iterator[Item], timeout: float | None = None, give_up: Callable[[], None] = lambda: None
) -> Iterator[Item]:
    """``items`` in order; a thread makes the next item while the caller uses the current one.

    If an item takes longer than ``timeout`` seconds, ``give_up`` is called, after which ``items`` must end.

    An exception of ``items`` is raised at its position in the order. The thread uses one core. With several OpenMP
    threads of its own there would be more threads than cores, and OpenMP would suspend all of them after each
    operation.

    Raises:
        RuntimeError: after the timeout, in the wording of a DataLoader's own errors.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        thread.submit(_use_one_core).result()
        torch.set_num_threads(threads)  # the number also becomes the default of threads without a computation yet
        upcoming = thread.submit(next, items, _END)
        while (item := _result(upcoming, timeout, give_up)) is not _END:
            upcoming = thread.submit(next, items, _END)
            yield item


def _result(upcoming: Future[Any], timeout: float | None, give_up: Callable[[], None]) -> Any:
    if not wait([upcoming], timeout).done:
        give_up()
        raise RuntimeError(f"DataLoader: no batch within {timeout:g} seconds")
    return upcoming.result()


def _use_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # fixes the number for this thread; its first operation would set it to the default

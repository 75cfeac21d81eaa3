"""Prefetching of an iterator's next item in a thread."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
_END = object()


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """``items`` in order; a thread makes the next item while the caller uses the current one.

    An exception of ``items`` is raised at its position in the order. The thread uses one core. With several OpenMP
    threads of its own there would be more threads than cores, and OpenMP would suspend all of them after each
    operation.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        thread.submit(_use_one_core).result()
        torch.set_num_threads(threads)  # the number also becomes the default of threads without a computation yet
        upcoming = thread.submit(next, items, _END)
        while (item := upcoming.result()) is not _END:
            upcoming = thread.submit(next, items, _END)
            yield item  # type: ignore[misc] # the end is no item


def _use_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # fixes the number for this thread; its first operation would set it to the default

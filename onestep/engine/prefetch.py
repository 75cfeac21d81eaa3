"""Making the next item while the one before it is used."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
_END = object()


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """``items`` in their order, each made in a thread while the one before it is used.

    What making one raises is raised in its turn. The thread makes it on one core: with OpenMP threads of its own beside
    its user's there would be more than cores, and OpenMP would put all of them to sleep after each operation.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, "ahead") as maker:
        maker.submit(_take_one_core).result()
        torch.set_num_threads(threads)  # a thread's number is also the default of those that have not calculated yet
        upcoming = maker.submit(next, items, _END)
        while (item := upcoming.result()) is not _END:
            upcoming = maker.submit(next, items, _END)
            yield item  # type: ignore[misc] # the end is no item


def _take_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # settles it for this thread, which else would take the default at its first operation

"""Making the next item while the one before it is used."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """``items`` in their order, each made in a thread while the one before it is used.

    What making one raises is raised in its turn.
    """
    with ThreadPoolExecutor(1, "ahead") as maker:
        upcoming = maker.submit(next, items, _END)
        while (item := upcoming.result()) is not _END:
            upcoming = maker.submit(next, items, _END)
            yield item  # type: ignore[misc] # the end is no item

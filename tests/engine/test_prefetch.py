"""Prefetching: order, errors and threads."""

import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from onestep.engine.prefetch import prefetch


def test_the_next_item_is_made_while_one_is_used() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    seen = []
    for item in prefetch(items()):
        seen.append(item)
        assert all(event.wait(timeout=10) for event in made[item : item + 2])
        assert not any(event.is_set() for event in made[item + 2 :])  # one item ahead
    assert seen == [0, 1, 2, 3]


def test_what_making_an_item_raises_comes_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise ValueError("the third is damaged")

    seen = []
    with pytest.raises(ValueError, match="the third is damaged"):
        for item in prefetch(items()):
            seen.append(item)
    assert seen == [0, 1]


def test_an_item_that_takes_too_long() -> None:
    killed = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        assert killed.wait(60)
        raise OSError("what the thread sees of a killed reader")

    user = prefetch(items(), timeout=0.05, give_up=killed.set)
    assert next(user) == 0
    with pytest.raises(RuntimeError, match=r"^DataLoader: no batch within 0\.05 seconds"):
        next(user)


def test_nothing_is_made_after_the_user_left() -> None:
    def items() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    made: list[int] = []
    user = prefetch(items())
    assert isinstance(user, Generator)
    assert [next(user), next(user)] == [0, 1]
    user.close()
    assert made == [0, 1, 2]


def test_the_maker_has_one_thread_and_its_user_keeps_its_own() -> None:
    def items() -> Iterator[int]:
        yield torch.get_num_threads()
        yield torch.get_num_threads()

    def used() -> list[tuple[int, int]]:
        return [(made, torch.get_num_threads()) for made in prefetch(items())]

    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert used() == [(1, threads + 1)] * 2
        with ThreadPoolExecutor(1) as user:  # a thread without a computation, so without a fixed number yet
            assert user.submit(used).result() == [(1, threads + 1)] * 2
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == threads + 1
    finally:
        torch.set_num_threads(threads)

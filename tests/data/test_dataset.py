"""The digits, batches of images, and the order in which a training reads them."""

from itertools import chain, islice
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits

from onestep.data.dataset import ImagesInMemory, PositionSampler, hold_out
from onestep.data.digits import Digits


def test_digits() -> None:
    data, bunch = Digits(), load_digits()
    assert len(data) == 1797 and data.image_shape == (1, 8, 8) and data.label_dim == 10
    assert data.images.min() == -1 and data.images.max() == 1
    assert torch.equal((data.images[:, 0] + 1) * 8, torch.tensor(bunch.images, dtype=torch.float32))
    assert data.labels is not None
    assert torch.equal(data.labels.argmax(1), torch.tensor(bunch.target))
    assert data.labels.sum(0).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (data.labels.sum(1) == 1).all() and data.labels.unique().tolist() == [0, 1]


@pytest.mark.parametrize("labels", [torch.tensor([1, 2, 1, 0, 2]), None], ids=["labels", "no labels"])
def test_a_batch_is_its_samples_stacked(labels: torch.Tensor | None) -> None:
    images = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    data = ImagesInMemory(images, labels, num_classes=0 if labels is None else 3)
    batch, condition = data.__getitems__([3, 0, 3])
    singles = [data[index] for index in (3, 0, 3)]
    assert torch.equal(batch, torch.stack([image for image, _ in singles]))
    assert torch.equal(batch, images[[3, 0, 3]])
    if labels is None:
        assert condition == {} == singles[0][1]
    else:
        assert condition["labels"].tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
        assert torch.equal(condition["labels"], torch.stack([own["labels"] for _, own in singles]))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([40, 42, 38], None),  # nearly equal: random classes, as published metrics draw them
        ([40, 0, 42], [0, 2]),
        ([0, 9, 0], [1]),
        ([90, 10, 0], [0] * 90 + [1] * 10),
    ],
)
def test_samples_have_the_classes_of_the_images(counts: list[int], expected: list[int] | None) -> None:
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    cycle = ImagesInMemory(torch.zeros(len(labels), 1, 2, 2), labels, num_classes=3).class_cycle
    assert (cycle if cycle is None else sorted(cycle)) == expected
    if cycle is not None and len(cycle) == 100:  # in random order: few samples too have the frequencies
        assert 0 < sum(cycle[:50]) < 10


def take(count: int, length: int = 10, global_batch: int = 4, seed: int = 0, **options: Any) -> list[list[int]]:
    """The first ``count`` batches."""
    return list(islice(PositionSampler(length, global_batch, seed, **options), count))


def test_every_epoch_sees_each_sample_once() -> None:
    """Batches of 4 run over the epochs' ends of a dataset of 10."""
    batches = take(10)
    assert all(len(batch) == 4 for batch in batches)
    read = list(chain(*batches))
    epochs = [read[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_held_out_images_are_in_no_epoch() -> None:
    data = ImagesInMemory(torch.zeros(40, 1, 2, 2))
    held = hold_out(data, 2, seed=3).held_out
    assert data.held_out == () and len(held) == 2 and list(held) == list(hold_out(data, 9, seed=3).held_out)
    assert hold_out(data, 9, seed=4).held_out != held and hold_out(data, 0, seed=3).held_out == []
    read = list(chain(*islice(PositionSampler(40, 19, 0, held_out=held), 6)))  # three epochs of 38
    for start in (0, 38, 76):
        assert sorted(read[start : start + 38]) == [index for index in range(40) if index not in held]


def test_copies_of_held_out_images_are_held_out() -> None:
    """Image i of 32 and its mirror image at 32 + i."""
    data = ImagesInMemory(torch.zeros(64, 1, 2, 2))
    data.copies = 2
    first, second, *mirrored = hold_out(data, 512, seed=0).held_out
    assert mirrored == [first + 32, second + 32]


def test_batch_larger_than_the_dataset() -> None:
    assert all(sorted(take(1, length=3, global_batch=9)[0][start : start + 3]) == [0, 1, 2] for start in (0, 3, 6))


@pytest.mark.parametrize("start", [1, 2, 5, 8])
def test_a_resumed_run_reads_on(start: int) -> None:
    assert take(10 - start, start=start) == take(10)[start:]


@pytest.mark.parametrize("processes", [2, 4])
def test_shares_of_the_processes_make_up_the_batch(processes: int) -> None:
    shares = [take(6, rank=rank, processes=processes) for rank in range(processes)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == take(6)


def test_order_depends_on_the_seed() -> None:
    assert take(5, length=100) == take(5, length=100)
    assert take(5, length=100) != take(5, length=100, seed=1)

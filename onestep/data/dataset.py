"""The interface of datasets, images in memory, training without data, and the order of training batches."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from onestep.denoiser import Condition, map_condition
from onestep.files import hash_tensors
from onestep.seeding import BatchRandom, seeded_rng

#: Images [B, C, H, W] in [-1, 1], or None for no images; and the condition, tensors [B, ...] by name.
Batch = tuple[Tensor | None, Condition]

#: Classes whose frequencies differ from equal ones by this total variation are drawn as frequent as they are. The
#: 1,000 classes of ImageNet, which published metrics draw equally, are below it.
_UNEVEN = 0.05
_LONGEST_CYCLE = 2**16
_PARTS = 16  # one of these parts of a dataset, at most, is held out
_OF_HELD_OUT = 4  # the random stream of the images that are held out; the other ones are those of engine.batches


class TrainingDataset(ABC, Dataset[Batch]):
    """Conditions, with or without images, by index.

    Attributes:
        image_shape: (C, H, W) of all images; without images, of the samples for these conditions.
        label_dim: number of classes; 0 for none.
        class_cycle: see :func:`cycle_of_classes`; None too for data that do not know the classes of their images.
        held_out: indices that no training batch has, see :func:`hold_out`.
        copies: how often each image is there, such as 2 with mirror images: all images, then their copies.
    """

    image_shape: tuple[int, int, int]
    label_dim: int
    class_cycle: Sequence[int] | None = None
    held_out: Sequence[int] = ()
    copies: int = 1

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A full batch, which a loader need not collate."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the data and their order, a key for cached results."""

    @property
    def description(self) -> str:
        """The name of this data in records of results."""
        return f"{type(self).__name__}, {len(self):,} images"


class ImageDataset(TrainingDataset):
    """Images in [-1, 1] with conditions."""

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Condition]: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Condition]:
        """One image [C, H, W] and its condition, tensors [...] by name."""
        images, condition = self.__getitems__([index])
        return images[0], map_condition(lambda tensor: tensor[0], condition)

    def batches(self, batch_size: int, rows: range | None = None) -> Iterator[Tensor]:
        """All images, or those of ``rows``, in order, [<= batch_size, C, H, W]; one batch in memory at a time."""
        rows = range(len(self)) if rows is None else rows
        for start in range(0, len(rows), batch_size):
            yield self.__getitems__(rows[start : start + batch_size])[0]


class NoData:
    """Replaces the dataset of a method without real images: random uniform labels in each iteration.

    Args:
        image_shape, label_dim: those of the teacher.
        classes: the classes that are drawn; None for all.
    """

    description = "no data"

    def __init__(self, image_shape: tuple[int, int, int], label_dim: int, classes: Sequence[int] | None = None) -> None:
        self.image_shape, self.label_dim, self.classes = image_shape, label_dim, classes

    def batch(self, random: BatchRandom) -> Batch:
        """None and the conditions of the rows of ``random``, on its device."""
        return None, {"labels": random.labels(self.label_dim, self.classes)} if self.label_dim else {}


_Data = TypeVar("_Data", bound=TrainingDataset)


def hold_out(data: _Data, count: int, seed: int) -> _Data:
    """A shallow copy of ``data`` whose ``held_out`` are ``count`` random images with their copies, at most a 16th."""
    distinct = len(data) // data.copies
    order = torch.randperm(distinct, generator=seeded_rng(seed, 0, 0, _OF_HELD_OUT))
    chosen = order[: min(count, distinct // _PARTS)].tolist()
    held = copy.copy(data)
    held.held_out = [index + number * distinct for number in range(data.copies) for index in chosen]
    return held


def contents(data: TrainingDataset | NoData) -> tuple[bool, list[str]]:
    """Whether the batches of ``data`` have images, and the names of their conditions, from the first item."""
    if isinstance(data, NoData):
        return False, ["labels"] if data.label_dim else []
    images, condition = data.__getitems__([0])
    return images is not None, list(condition)


class ImagesInMemory(ImageDataset):
    """Images [N, C, H, W] in [-1, 1], with class labels [N] or without."""

    def __init__(self, images: Tensor, labels: Tensor | None = None, num_classes: int = 0) -> None:
        self.images = images.float()
        self.labels = None if labels is None else F.one_hot(labels, num_classes).float()
        self.image_shape = tuple(images.shape[1:])  # type: ignore[assignment]
        self.label_dim = num_classes
        self.class_cycle = None if labels is None else cycle_of_classes(labels.numpy(), num_classes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Condition]:
        chosen = torch.as_tensor(indices)
        return self.images[chosen], {} if self.labels is None else {"labels": self.labels[chosen]}

    def fingerprint(self) -> str:
        return hash_tensors({"images": self.images, **({} if self.labels is None else {"labels": self.labels})})


def cycle_of_classes(labels: np.ndarray, label_dim: int) -> list[int] | None:
    """A cycle that gives samples the classes of the images with ``labels`` [N], as metrics compare them.

    It is the classes that have images, or, where these are not equally frequent, the images' labels in random order.
    None if all ``label_dim`` classes are equally frequent: a random class is as good, and the usual protocol.
    """
    counts = np.bincount(labels, minlength=label_dim)
    used = counts.nonzero()[0]
    if np.abs(counts[used] / len(labels) - 1 / len(used)).sum() / 2 > _UNEVEN:
        return np.random.RandomState(0).permutation(labels)[:_LONGEST_CYCLE].tolist()
    return used.tolist() if len(used) < label_dim else None


def keep_batch(batch: Any) -> Any:
    """The loader's collation, as ``__getitems__`` returns a batch. (A lambda cannot be sent to a worker.)"""
    return batch


class PositionSampler(Sampler[list[int]]):
    """Endless batches, each a function of its position alone, so that a resumed run continues the order.

    Epoch ``e`` is a permutation, by the key ``(seed, e)``, of the indices that are not held out. The global batch at
    position ``p`` is the ``p``-th block of ``global_batch`` samples of the concatenated epochs. This process reads its
    rows of it.

    Args:
        length: number of samples in the dataset.
        global_batch: samples per batch over all processes; ``processes`` must divide it.
        seed: seed of the order.
        start: position of the first batch.
        rank, processes: index of this process, and number of processes.
        held_out: indices that are left out.
    """

    def __init__(
        self, length: int, global_batch: int, seed: int, start: int = 0, rank: int = 0, processes: int = 1,
        held_out: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.indices = torch.arange(length)
        if held_out:
            kept = torch.ones(length, dtype=torch.bool).index_fill_(0, torch.as_tensor(held_out), False)
            self.indices = self.indices[kept]
        self.length, self.global_batch, self.seed, self.start = len(self.indices), global_batch, seed, start
        self.rows = slice(rank * global_batch // processes, (rank + 1) * global_batch // processes)

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start * self.global_batch
        epoch, order = -1, torch.empty(0, dtype=torch.long)
        while True:
            batch: list[int] = []
            for index in range(position, position + self.global_batch):
                if index // self.length != epoch:
                    epoch = index // self.length
                    order = self.indices[torch.randperm(self.length, generator=seeded_rng(self.seed, epoch))]
                batch.append(int(order[index % self.length]))
            yield batch[self.rows]
            position += self.global_batch

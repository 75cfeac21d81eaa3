"""The interface of all datasets, images in memory, training without data, and the order in which a training reads."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from onestep.denoiser import Condition, map_condition
from onestep.files import hash_tensors
from onestep.seeding import BatchRandom, seeded_rng

#: Images [B, C, H, W] in [-1, 1], None where there are none; and the condition, tensors [B, ...] by name.
Batch = tuple[Tensor | None, Condition]


class TrainingDataset(ABC, Dataset[Batch]):
    """Conditions, with images or without, read by their indices.

    Attributes:
        image_shape: (C, H, W) of every image; where there are none, of what networks of these conditions generate.
        label_dim: number of classes; 0 for none.
    """

    image_shape: tuple[int, int, int]
    label_dim: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch, so that a loader need not collate single samples."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of all that the data and their order depend on: results computed from them can be kept under it."""

    @property
    def description(self) -> str:
        """The name that records of results give to this data."""
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
    """In place of a dataset, for a method that needs no images: uniform labels, drawn anew for every iteration.

    Args:
        image_shape, label_dim: the teacher's.
    """

    description = "no data"

    def __init__(self, image_shape: tuple[int, int, int], label_dim: int) -> None:
        self.image_shape, self.label_dim = image_shape, label_dim

    def batch(self, random: BatchRandom) -> Batch:
        """No images, and the conditions of the rows of ``random``, on their device."""
        return None, {"labels": random.labels(self.label_dim)} if self.label_dim else {}


def has_images(data: TrainingDataset | NoData) -> bool:
    """Whether the batches of ``data`` hold images."""
    return isinstance(data, TrainingDataset) and data.__getitems__([0])[0] is not None


class ImagesInMemory(ImageDataset):
    """Images [N, C, H, W] in [-1, 1] with class labels [N] or none."""

    def __init__(self, images: Tensor, labels: Tensor | None = None, num_classes: int = 0) -> None:
        self.images = images.float()
        self.labels = None if labels is None else F.one_hot(labels, num_classes).float()
        self.image_shape = tuple(images.shape[1:])  # type: ignore[assignment]
        self.label_dim = num_classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Condition]:
        chosen = torch.as_tensor(indices)
        return self.images[chosen], {} if self.labels is None else {"labels": self.labels[chosen]}

    def fingerprint(self) -> str:
        return hash_tensors({"images": self.images, **({} if self.labels is None else {"labels": self.labels})})


def keep_batch(batch: Any) -> Any:
    """The loader's collation: ``__getitems__`` has made the batch already. (A worker cannot be sent a lambda.)"""
    return batch


class PositionSampler(Sampler[list[int]]):
    """Batches without end, each a function of its position alone: a resumed run reads on where it stopped.

    Epoch ``e`` is the permutation that ``(seed, e)`` gives; the global batch at position ``p`` is the ``p``-th run of
    ``global_batch`` samples through the concatenated epochs, of which this process reads its own share.

    Args:
        length: number of samples in the dataset.
        global_batch: samples a batch over all processes; ``processes`` must divide it.
        seed: seed of the order.
        start: position of the first batch.
        rank, processes: which share of each batch to read.
    """

    def __init__(
        self, length: int, global_batch: int, seed: int, start: int = 0, rank: int = 0, processes: int = 1
    ) -> None:
        self.length, self.global_batch, self.seed, self.start = length, global_batch, seed, start
        self.share = slice(rank * global_batch // processes, (rank + 1) * global_batch // processes)

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start * self.global_batch
        epoch, order = -1, torch.empty(0, dtype=torch.long)
        while True:
            batch: list[int] = []
            for index in range(position, position + self.global_batch):
                if index // self.length != epoch:
                    epoch = index // self.length
                    order = torch.randperm(self.length, generator=seeded_rng(self.seed, epoch))
                batch.append(int(order[index % self.length]))
            yield batch[self.share]
            position += self.global_batch

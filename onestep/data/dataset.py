"""What every dataset offers, images in memory, and the order in which a training reads them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from onestep.denoiser import Condition, map_condition
from onestep.files import hash_tensors
from onestep.seeding import seeded_rng

#: Images [B, C, H, W] in [-1, 1] and one-hot labels [B, num_classes] or None.
Batch = tuple[Tensor, Condition]


class ImageDataset(ABC, Dataset[Batch]):
    """Images in [-1, 1] with class labels or none, read by their indices.

    Attributes:
        image_shape: (C, H, W) of every image.
        label_dim: number of classes; 0 for none.
        unconditional: what guidance guides away from [1, ...]; None for the zero vector of classes.
        has_images: False for prompts alone, in whose batches zeros stand for images; nothing may read them.
    """

    image_shape: tuple[int, int, int]
    label_dim: int
    unconditional: Condition = None
    has_images = True

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch, so that a loader need not collate single samples."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of all that the images and their order depend on: what is computed of them can be kept under it."""

    def __getitem__(self, index: int) -> Batch:
        """One image [C, H, W] and its one-hot label [num_classes] or None."""
        images, conditions = self.__getitems__([index])
        return images[0], map_condition(lambda tensor: tensor[0], conditions)

    @property
    def real(self) -> "ImageDataset":
        """What decoded samples are compared with."""
        return self

    @property
    def description(self) -> str:
        """What the record of a figure says of its reference."""
        return f"{type(self).__name__}, {len(self):,} images"

    def batches(self, batch_size: int, share: range | None = None) -> Iterator[Tensor]:
        """All images or a ``share`` in their order, [<= batch_size, C, H, W], no more in memory than that."""
        share = range(len(self)) if share is None else share
        for start in range(0, len(share), batch_size):
            yield self.__getitems__(share[start : start + batch_size])[0]

    def condition_of(self, seeds: Sequence[int]) -> Condition:
        """What is drawn of ``seeds`` where the conditions are no classes, which seeds know by themselves."""
        return None

    def decode(self, samples: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] of what the networks draw, latents [B, c, h, w] where they lie in between."""
        return samples


class ImagesInMemory(ImageDataset):
    """Images [N, C, H, W] in [-1, 1] with class labels [N] or none."""

    def __init__(self, images: Tensor, labels: Tensor | None = None, num_classes: int = 0) -> None:
        self.images = images.float()
        self.conditions = None if labels is None else F.one_hot(labels, num_classes).float()
        self.image_shape = tuple(images.shape[1:])  # type: ignore[assignment]
        self.label_dim = num_classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices)
        return self.images[chosen], None if self.conditions is None else self.conditions[chosen]

    def fingerprint(self) -> str:
        return hash_tensors({"images": self.images})


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

"""Images in memory, and the order in which a training reads them."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from onestep.denoiser import Condition
from onestep.seeding import seeded_generator


class ImageDataset(Dataset[tuple[Tensor, Condition]]):
    """Images [N, C, H, W] in [-1, 1] with class labels [N] or none.

    Indexing with a list gives a whole batch, images [B, C, H, W] and one-hot labels [B, num_classes] or None, so a
    loader need not collate single samples.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None, num_classes: int = 0) -> None:
        self.images = images.float()
        self.conditions = None if labels is None else F.one_hot(labels, num_classes).float()
        self.image_shape: tuple[int, int, int] = tuple(images.shape[1:])  # type: ignore[assignment]
        self.label_dim = num_classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Condition]:
        return self.images[index], None if self.conditions is None else self.conditions[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Condition]:
        chosen = torch.as_tensor(indices)
        return self.images[chosen], None if self.conditions is None else self.conditions[chosen]


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
                    order = torch.randperm(self.length, generator=seeded_generator(self.seed, epoch))
                batch.append(int(order[index % self.length]))
            yield batch[self.share]
            position += self.global_batch

"""The images of some classes of a dataset."""

from collections.abc import Sequence

import torch
from torch import Tensor

from onestep.data.dataset import ImageDataset, NoData, TrainingDataset, contents, cycle_of_classes
from onestep.denoiser import Condition
from onestep.files import hash_parts

_READ = 1000  # images in memory at once


class ClassSubset(ImageDataset):
    """The images of ``classes`` in ``images``, in their order, with the labels that they have there.

    The labels of all images are read once, at the start.

    Raises:
        ValueError: for a class without images.
    """

    def __init__(self, images: ImageDataset, classes: Sequence[int]) -> None:
        self.images, self.classes = images, list(classes)
        self.image_shape, self.label_dim, self.copies = images.image_shape, images.label_dim, images.copies
        labels = classes_of_items(images)
        chosen = torch.isin(labels, torch.tensor(self.classes))
        if missing := sorted({*self.classes} - {*labels[chosen].tolist()}):
            raise ValueError(f"the data have no images of the classes {missing}: choose other classes, or other data")
        self.indices = chosen.nonzero().flatten().tolist()
        self.class_cycle = cycle_of_classes(labels[chosen].numpy(), self.label_dim)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Condition]:
        return self.images.__getitems__([self.indices[index] for index in indices])

    def fingerprint(self) -> str:
        return hash_parts([self.images.fingerprint(), str(self.classes)])

    @property
    def description(self) -> str:
        return f"{type(self.images).__name__}, {len(self):,} images of the classes {self.classes}"


def classes_of_items(images: ImageDataset) -> Tensor:
    """The classes [N] of all items of a dataset with labels, which are read."""
    starts = range(0, len(images), _READ)
    parts = [images.__getitems__(range(start, min(start + _READ, len(images))))[1]["labels"] for start in starts]
    return torch.cat(parts).argmax(1)


def of_classes(data: TrainingDataset | NoData, classes: Sequence[int]) -> TrainingDataset | NoData:
    """``data`` of these classes alone.

    Raises:
        ValueError: for data whose conditions are not classes, or a class without images.
    """
    if isinstance(data, NoData):
        return NoData(data.image_shape, data.label_dim, classes)
    names = contents(data)[1]
    if not isinstance(data, ImageDataset) or names != ["labels"]:
        found = ", ".join(names) or "none"
        raise ValueError(f"this student takes classes, and the data have the conditions {found}: use data with classes")
    return data if {*classes} == {*range(data.label_dim)} else ClassSubset(data, classes)

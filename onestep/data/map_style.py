"""A map-style dataset of torch as training data."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from onestep.data.dataset import ImageDataset
from onestep.denoiser import Condition
from onestep.files import hash_parts, hash_tensors


class MapDataset(ImageDataset):
    """The images and conditions of a map-style dataset.

    Args:
        items: a dataset of images, of (image, class index) or of (image, {name: tensor}). Images are float tensors
            [C, H, W] in [-1, 1], all of one shape.
        num_classes: number of classes of a class index; items without one have no classes.

    Raises:
        ValueError: for an empty dataset, or an item of another kind or shape: the first now, others at access.
    """

    def __init__(self, items: Dataset[Any], num_classes: int = 0) -> None:
        if not hasattr(items, "__len__") or not len(items):
            raise ValueError(f"{type(items).__name__} has no length or no items: expected a map-style dataset")
        self.items, self.label_dim = items, num_classes
        first, condition = self._split(0)
        if condition is None or (isinstance(condition, Mapping) and "labels" not in condition):
            self.label_dim = 0  # a network with classes then does not fit the data
        if not isinstance(first, Tensor) or first.ndim != 3:
            found = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise ValueError(f"item 0 holds {found}: expected an image as a float tensor [C, H, W]")
        channels, height, width = first.shape
        self.image_shape = (channels, height, width)
        self._read(0)

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Condition]:
        images, conditions = zip(*(self._read(int(index)) for index in indices), strict=True)
        names = conditions[0]
        for index, condition in zip(indices, conditions, strict=True):
            if condition.keys() != names.keys():
                raise ValueError(f"item {index} has the condition {list(condition)}, item {indices[0]} {list(names)}")
        return torch.stack(images), {name: torch.stack([one[name] for one in conditions]) for name in names}

    def fingerprint(self) -> str:
        items = (self._read(index) for index in range(len(self)))
        return hash_parts(hash_tensors({"": image, **condition}) for image, condition in items)

    def _split(self, index: int) -> tuple[Any, Any]:
        item = self.items[index]
        if not isinstance(item, tuple | list):
            return item, None
        if len(item) != 2:
            raise ValueError(f"item {index} has {len(item)} parts: expected an image, (image, class) or (image, dict)")
        return item[0], item[1]

    def _read(self, index: int) -> tuple[Tensor, Condition]:
        image, condition = self._split(index)
        if not isinstance(image, Tensor) or not image.is_floating_point():
            kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"the image of item {index} is {kind}: expected floats in [-1, 1], as uint8 / 127.5 - 1")
        if image.shape != self.image_shape:
            raise ValueError(f"the image of item {index} is {tuple(image.shape)}, the first one {self.image_shape}")
        low, high = image.min().item(), image.max().item()
        if not -1 <= low <= high <= 1:  # also false for NaN
            raise ValueError(f"the values of item {index} are in [{low:g}, {high:g}]: expected an image in [-1, 1]")
        return image.float(), self._condition(index, condition)

    def _condition(self, index: int, condition: Any) -> Condition:
        if isinstance(condition, Mapping):
            return {str(name): torch.as_tensor(value) for name, value in condition.items()}
        if condition is None:
            return {}
        label = int(condition)
        if not 0 <= label < self.label_dim:
            raise ValueError(
                f"item {index} is of class {label}, and num_classes={self.label_dim}: expected classes from 0 to below "
                "num_classes"
            )
        return {"labels": F.one_hot(torch.tensor(label), self.label_dim).float()}


class ItemConditions:
    """The conditions of the items of ``data``, by which samples are generated for an evaluation."""

    prompts: Sequence[str] | None = None

    def __init__(self, data: ImageDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, indices: Sequence[int]) -> Condition:
        return self.data.__getitems__(indices)[1]

"""Any map-style dataset of torch as data, and what is refused of it."""

from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from onestep.data.map_style import ItemConditions, MapDataset

IMAGES = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Items(Dataset[Any]):
    """A list as a dataset."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_images_alone() -> None:
    data = MapDataset(Items(list(IMAGES)))
    assert (len(data), data.image_shape, data.label_dim) == (5, (3, 4, 4), 0)
    images, condition = data.__getitems__([4, 0])
    assert torch.equal(images, IMAGES[[4, 0]]) and condition == {}
    assert torch.equal(torch.cat(list(data.batches(2))), IMAGES)


def test_images_with_a_class() -> None:
    data = MapDataset(TensorDataset(IMAGES, torch.tensor([2, 0, 1, 1, 2])), num_classes=3)
    images, condition = data.__getitems__([0, 2])
    assert torch.equal(images, IMAGES[[0, 2]]) and condition["labels"].tolist() == [[0, 0, 1], [0, 1, 0]]
    assert data[3][1]["labels"].tolist() == [0, 1, 0]


def test_images_with_named_tensors() -> None:
    data = MapDataset(Items([(image, {"camera": torch.tensor([float(i), 1.0])}) for i, image in enumerate(IMAGES)]))
    assert data.__getitems__([3, 1])[1]["camera"].tolist() == [[3, 1], [1, 1]]
    mixed = MapDataset(Items([(IMAGES[0], {"camera": torch.zeros(1)}), (IMAGES[1], {"image": torch.zeros(1)})]))
    with pytest.raises(ValueError, match=r"item 1 has the condition \['image'\], item 0 \['camera'\]"):
        mixed.__getitems__([0, 1])


def test_the_fingerprint_is_of_images_and_conditions() -> None:
    labels = torch.tensor([2, 0, 1, 1, 2])
    changed = IMAGES.clone()
    changed[4, 0, 0, 0] += 1e-3
    made = [MapDataset(TensorDataset(*tensors), 3) for tensors in (
        (IMAGES, labels), (IMAGES, labels), (IMAGES, labels.flip(0)), (changed, labels),
    )]  # fmt: skip
    first, again, *others = [data.fingerprint() for data in made]
    assert first == again and len({first, *others}) == 3


@pytest.mark.parametrize(
    "items, num_classes, message",
    [
        ([], 0, "no items: expected a map-style dataset"),
        ([(IMAGES[0] * 255).byte()], 0, r"item 0 is torch.uint8: expected floats in \[-1, 1\], as uint8 / 127.5 - 1"),
        ([IMAGES[0] * 0 + 255], 0, r"item 0 are in \[255, 255\]: expected an image in \[-1, 1\]"),
        ([IMAGES[0] * float("nan")], 0, r"item 0 are in \[nan, nan\]"),
        ([IMAGES], 0, r"item 0 holds \(5, 3, 4, 4\): expected an image as a float tensor \[C, H, W\]"),
        (["a cat"], 0, "item 0 holds str"),
        ([(IMAGES[0], 1, 2)], 0, "item 0 has 3 parts"),
        ([(IMAGES[0], 1)], 0, "item 0 is of class 1, and num_classes=0"),
        ([(IMAGES[0], 3)], 3, "item 0 is of class 3, and num_classes=3"),
    ],
)
def test_a_first_item_that_is_refused(items: list[Any], num_classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MapDataset(Items(items), num_classes)


def test_a_later_item_that_is_refused() -> None:
    data = MapDataset(Items([IMAGES[0], IMAGES[1, :1], IMAGES[2] * 2]))
    with pytest.raises(ValueError, match=r"the image of item 1 is \(1, 4, 4\), the first one \(3, 4, 4\)"):
        data.__getitems__([0, 1])
    with pytest.raises(ValueError, match=r"the values of item 2 are in"):
        data.__getitems__([2])


def test_images_alone_have_no_classes() -> None:
    assert MapDataset(Items(list(IMAGES)), num_classes=3).label_dim == 0
    one_hot = torch.tensor([0.0, 1.0, 0.0])
    assert MapDataset(Items([(image, {"labels": one_hot}) for image in IMAGES]), num_classes=3).label_dim == 3


def test_the_conditions_of_the_items() -> None:
    conditions = ItemConditions(MapDataset(Items([(image, {"camera": image.mean()}) for image in IMAGES])))
    assert len(conditions) == 5
    torch.testing.assert_close(conditions[[3, 0]]["camera"], IMAGES[[3, 0]].mean((1, 2, 3)))

"""Pairs of images and degraded images: what a batch holds, which random numbers it has, and what is refused."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from onestep.config import instantiate
from onestep.data.crops import ImageCrops
from onestep.data.dataset import ImagesInMemory, PositionSampler, hold_out, keep_batch
from onestep.data.degradation import AreaReduction, enlarge
from onestep.data.digits import Digits
from onestep.data.image_folder import ImageFolder
from onestep.data.paired import PairedFolders, PairedImages
from onestep.images import DamagedImageError, from_uint8
from tests.helpers.configs import configure


def random_model(factor: float = 2.0) -> Any:
    return instantiate(configure("train", "degradation=bsrgan", f"degradation.factor={factor}").degradation)


def few_digits(count: int = 6) -> ImagesInMemory:
    digits = Digits()
    return ImagesInMemory(digits.images[:count], torch.arange(count) % 10, 10)


def write(folder: Path, *shapes: tuple[int, ...], suffix: str = ".png") -> Path:
    """Pictures of these shapes (H, W) or (H, W, 3) whose pixels tell their place: row, and column."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shape in enumerate(shapes):
        rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.uint8)
        pixels = np.stack([rows, columns, np.full_like(rows, number)], -1)
        Image.fromarray(pixels if len(shape) == 3 else rows).save(folder / f"{number}{suffix}")
    return folder


def test_a_batch_has_the_degraded_images_at_full_size() -> None:
    images = few_digits()
    assert images.labels is not None
    data = PairedImages(images, AreaReduction(2))
    x, condition = data.__getitems__([4, 1])
    assert torch.equal(x, images.images[[4, 1]]) and torch.equal(condition["labels"], images.labels[[4, 1]])
    means = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    assert (data.pairs([4, 1])[1] - means).abs().max() <= 1 / 255 + 1e-6  # half a grey level
    assert torch.equal(condition["image"], enlarge(data.pairs([4, 1])[1], (8, 8)))
    assert torch.equal(data.degrade(x, [4, 1]), data.pairs([4, 1])[1])
    assert (data.image_shape, data.label_dim, len(data), data.copies) == ((1, 8, 8), 10, 6, 1)
    assert data.description == "ImagesInMemory, 6 images, degraded by AreaReduction"


def test_a_degradation_depends_on_seed_and_index_alone() -> None:
    data = PairedImages(few_digits(), random_model(), repeats=3)
    assert (len(data), data.copies) == (18, 3)
    everything = data.__getitems__(range(18))[1]["image"]
    # One image at a time; in workers; and another seed, another repeat or the evaluation has other numbers.
    assert torch.equal(torch.stack([data[index][1]["image"] for index in range(18)]), everything)
    order = PositionSampler(len(data), 6, seed=0)
    loader = DataLoader(data, batch_sampler=order, collate_fn=keep_batch, num_workers=1)
    _, condition = next(iter(loader))
    assert torch.equal(condition["image"], everything[next(iter(order))])
    others = [everything[6:12], everything[12:], data.evaluated.__getitems__(range(6))[1]["image"]]
    others.append(PairedImages(few_digits(), random_model(), seed=1).__getitems__(range(6))[1]["image"])
    for other in others:
        assert not any(torch.equal(*pair) for pair in zip(everything[:6], other, strict=True))


def test_the_fingerprint_covers_all_that_a_pair_depends_on() -> None:
    kinds: list[dict[str, Any]] = [{}, {"seed": 1}, {"repeats": 2}, {"degradation": random_model(3.0)},
                                   {"images": few_digits(5)}]  # fmt: skip
    base = {"images": few_digits(), "degradation": random_model()}
    found = [PairedImages(**(base | kind)).fingerprint() for kind in kinds]
    assert len({*found, PairedImages(**base).evaluated.fingerprint()}) == 6
    assert PairedImages(**base).fingerprint() == found[0]


def test_the_evaluation_has_images_of_its_own_once() -> None:
    own = few_digits(3)
    data = PairedImages(few_digits(), AreaReduction(2), own, repeats=5)
    assert data.evaluated.originals is own and len(data.evaluated) == 3
    assert len(PairedImages(few_digits(), AreaReduction(2), repeats=5).evaluated) == 6


def test_repeats_of_an_image_are_held_out_together() -> None:
    data = hold_out(PairedImages(few_digits(40), AreaReduction(2), repeats=3), 2, seed=0)
    held = {index % 40 for index in data.held_out}
    assert len(held) == 2 and sorted(data.held_out) == sorted(index + 40 * n for n in range(3) for index in held)


def test_crops_are_windows_of_the_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", (40, 23, 3), (17, 60, 3))
    crops = ImageCrops(str(folder), size=16, crops=30)
    assert (len(crops), crops.copies, crops.image_shape) == (60, 30, (3, 16, 16))
    pixels = ((crops.__getitems__(range(60))[0] + 1) * 127.5).round().int()
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    corners = set()
    for index, crop in enumerate(pixels):
        top, left = crop[0, 0, 0], crop[1, 0, 0]
        assert torch.equal(crop[:2], torch.stack([rows + top, columns + left]).int()) and (crop[2] == index % 2).all()
        corners.add((index % 2, int(top), int(left)))
    for number, (height, width) in enumerate([(40, 23), (17, 60)]):  # every place can be drawn, and no other
        tops, lefts = ({corner[axis] for corner in corners if corner[0] == number} for axis in (1, 2))
        assert max(tops) <= height - 16 and max(lefts) <= width - 16 and min(len(tops), len(lefts)) >= 2
    assert torch.equal(crops[7][0], ImageCrops(str(folder), size=16, crops=8)[7][0])
    names: dict[str, Any] = {"size": 16, "crops": 30}
    others = [names | {"random_seed": 1}, names | {"size": 15}, names | {"crops": 29}, names | {"turns": True}]
    assert len({ImageCrops(str(folder), **kind).fingerprint() for kind in (names, *others)}) == 5


def test_the_eight_turns_of_a_crop(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", (5, 5, 3))
    plain = ImageCrops(str(folder), size=5)[0][0]
    square = [torch.rot90(one, turn, (1, 2)) for one in (plain, plain.flip(2)) for turn in range(4)]
    found = ImageCrops(str(folder), size=5, crops=60, turns=True).__getitems__(range(60))[0]
    turns = [next(number for number, one in enumerate(square) if torch.equal(one, crop)) for crop in found]
    assert {*turns} == {*range(8)}


@pytest.mark.parametrize("cache, decoded", [(2.0, 2), (0.0, 6), (2e-6, 6)])
def test_files_are_decoded_once_while_they_fit(
    cache: float, decoded: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = ImageCrops(str(write(tmp_path / "photos", (30, 30, 3), (30, 40, 3))), size=8, crops=3, cache=cache)
    calls: list[int] = []

    def pixels(self: ImageCrops, position: int) -> np.ndarray:
        calls.append(position)
        return ImageFolder.pixels(self, position)

    monkeypatch.setattr(ImageCrops, "pixels", pixels)
    crops.__getitems__(range(6))
    assert len(calls) == decoded
    assert sum(kept.nbytes for kept in crops._decoded.values()) <= max(cache * 1e9, 3600)
    assert not pickle.loads(pickle.dumps(crops))._decoded  # sent to a worker without them


def test_crops_read_the_headers_alone_before_their_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "photos", (20, 20, 3), (20, 20, 3), (20, 30, 3))
    read: list[int] = []

    def encoded(self: ImageFolder, position: int) -> bytes:
        read.append(position)
        return ImageFolder.encoded(self, position)

    monkeypatch.setattr(ImageCrops, "encoded", encoded)
    crops = ImageCrops(str(folder), size=16, crops=4)
    assert read == [0]  # for the channels
    crops.__getitems__([0, 1, 2])  # the first crops are of one photograph each
    assert read == [0, 0, 1, 2]


def test_what_crops_refuse(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", (40, 40, 3), (40, 15, 3))
    with pytest.raises(ValueError, match=r"photos: '1\.png' has 15 x 40 pixels, and crops have 16: remove it, or "):
        ImageCrops(str(folder), size=16)
    grey = write(tmp_path / "mixed", (20, 20, 3), (20, 20))
    with pytest.raises(ValueError, match=r"mixed: '1\.png' has 1 channels, the first image 3: set data\.channels"):
        ImageCrops(str(grey), size=16).__getitems__([0, 1])
    (folder / "1.png").write_bytes((folder / "0.png").read_bytes()[:60])
    with pytest.raises(DamagedImageError, match=r"the image '1\.png' is damaged"):
        ImageCrops(str(folder), size=16).__getitems__([1])
    assert len(ImageCrops(str(folder), size=16, skip_damaged=True)) == 1


def test_folders_are_paired_by_name(tmp_path: Path) -> None:
    low = ImageFolder(str(write(tmp_path / "low", (4, 5, 3), (4, 5, 3), (4, 5, 3), suffix=".bmp")))
    high = ImageFolder(str(write(tmp_path / "high", (8, 10, 3), (8, 10, 3), (8, 10, 3))))
    data = PairedFolders(high, low)
    x, condition = data.__getitems__([2, 0])
    for row, number in enumerate((2, 0)):
        assert (x[row, 2] == from_uint8(torch.tensor(number))).all()
        assert (condition["image"][row, 2] - from_uint8(torch.tensor(number))).abs().max() < 1e-6
    assert torch.equal(condition["image"], enlarge(low.__getitems__([2, 0])[0], (8, 10)))
    assert data.degrade(x, [2, 0]) is None and data.evaluated is data and data.originals is high
    assert len({data.fingerprint(), high.fingerprint(), low.fingerprint()}) == 3


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ([(4, 4, 3)], [(8, 8, 3)] * 2, "low: no image is named 1 as in .*high, and 1 are missing: add them, or remove"),
        ([(4, 4, 3)] * 3, [(8, 8, 3)], "high: no image is named 1 as in .*low, and 2 are missing"),
        (
            [(4, 4)],
            [(8, 8, 3)],
            r"low: images of \(1, 4, 4\) \(channels, height, width\) for \(3, 8, 8\) in .*high: exp",
        ),
        ([(9, 4, 3)], [(8, 8, 3)], "expected as many channels, and at most the same size"),
    ],
)
def test_folders_that_do_not_fit(low: Any, high: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        PairedFolders(
            ImageFolder(str(write(tmp_path / "high", *high))), ImageFolder(str(write(tmp_path / "low", *low)))
        )


def test_two_images_of_one_name(tmp_path: Path) -> None:
    for suffix in (".png", ".bmp"):
        write(tmp_path / "both", (4, 4, 3), suffix=suffix)
    images = ImageFolder(str(tmp_path / "both"))
    with pytest.raises(ValueError, match=r"both: two images are named '0': rename one"):
        PairedFolders(images, images)


def points(*shape: int) -> ImagesInMemory:
    return ImagesInMemory(Tensor(np.zeros((4, *shape))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"degradation": None},
            r"^data=paired needs a degradation: choose degradation=area, bicubic, bsrgan, real_es",
        ),
        (
            {"images": points(4, 8, 8)},
            "^the images to degrade are 4x8x8: expected grey or RGB pixels, no latents and po",
        ),
        ({"images": points(1, 1, 1)}, "^the images to degrade are 1x1x1: expected grey or RGB pixels"),
        (
            {"evaluation": points(1, 8, 8)},
            r"^data\.evaluation has label_dim 0, data\.images 10: choose images of one sh",
        ),
        ({"evaluation": points(1, 8, 9)}, r"^data\.evaluation has image_shape \(1, 8, 9\), data\.images \(1, 8, 8\): "),
        ({"repeats": 0}, "^repeats=0: expected an integer of at least 1"),
    ],
)
def test_what_pairs_refuse(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairedImages(**({"images": few_digits(), "degradation": AreaReduction(2)} | arguments))

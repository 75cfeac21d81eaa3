"""EDM's format against what EDM's own reader returned, and files that mean harm."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from onestep.data.dataset import PositionSampler, keep_batch
from onestep.data.edm_zip import EDMZip
from onestep.images import DamagedImageError, to_uint8
from tests.helpers.paths import REFERENCE
from tests.helpers.pictures import huge_png

Rewrite = Callable[..., Path]


@pytest.fixture
def recorded() -> dict[str, np.ndarray]:
    """What EDM's ImageFolderDataset returned."""
    return dict(np.load(REFERENCE / "rand-16x16-10c.expected.npz"))


@pytest.fixture
def original() -> Path:
    return REFERENCE / "rand-16x16-10c.zip"


@pytest.fixture
def rewrite(original: Path, tmp_path: Path) -> Rewrite:
    """Copies the zip with files replaced or, by None, left out."""

    def build(changes: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
        target = tmp_path / "changed.zip"
        with zipfile.ZipFile(original) as old, zipfile.ZipFile(target, "w", compression) as new:
            contents: dict[str, bytes | None] = {name: old.read(name) for name in old.namelist()}
            for name, content in (contents | changes).items():
                if content is not None:
                    new.writestr(name, content)
        return target

    return build


def all_pixels(data: EDMZip) -> np.ndarray:
    return torch.cat([to_uint8(images) for images in data.batches(10)]).numpy()


@pytest.mark.parametrize("unpacked", [False, True], ids=["zip", "folder"])
def test_equals_edm_s_reader(unpacked: bool, original: Path, recorded: dict[str, np.ndarray], tmp_path: Path) -> None:
    if unpacked:
        zipfile.ZipFile(original).extractall(tmp_path)
    data = EDMZip(str(tmp_path if unpacked else original))
    assert (len(data), data.image_shape, data.label_dim) == (64, (3, 16, 16), int(recorded["label_dim"]))
    images, conditions = data.__getitems__(range(64))
    # EDM's training divides by 127.5 and subtracts 1.
    assert torch.equal(images, torch.from_numpy(recorded["images"]).float() / 127.5 - 1)
    assert np.array_equal(conditions["labels"].numpy(), recorded["onehot_labels"])
    assert np.array_equal(all_pixels(data), recorded["images"])


def test_mirror_images_and_subsets_are_edm_s(original: Path, recorded: dict[str, np.ndarray]) -> None:
    mirrored = EDMZip(str(original), xflip=True)
    assert len(mirrored) == recorded["xflip_len"]
    assert np.array_equal(to_uint8(mirrored[64][0]).numpy(), recorded["xflip_image0"])
    assert torch.equal(mirrored[64 + 7][0], mirrored[7][0].flip(2))
    subset = EDMZip(str(original), max_size=10, random_seed=3)
    chosen = recorded["subset10_seed3_raw_idx"]
    assert np.array_equal(subset.positions, chosen)
    assert np.array_equal(all_pixels(subset), recorded["images"][chosen])
    _, conditions = subset.__getitems__(range(10))
    assert np.array_equal(conditions["labels"].numpy(), recorded["onehot_labels"][chosen])
    both = EDMZip(str(original), max_size=10, random_seed=3, xflip=True)
    image, condition = both[13]
    assert np.array_equal(condition["labels"].numpy(), recorded["onehot_labels"][chosen[3]])
    assert np.array_equal(to_uint8(image).numpy(), recorded["images"][chosen[3]][:, :, ::-1])
    with pytest.raises(IndexError):
        both[20]


def test_without_labels(original: Path, rewrite: Rewrite) -> None:
    for data in (EDMZip(str(original), use_labels=False), EDMZip(str(rewrite({"dataset.json": None})))):
        assert data.label_dim == 0 and data[0][1] == {}
    nulls = rewrite({"dataset.json": b'{"labels": null}'})
    assert EDMZip(str(nulls)).label_dim == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(workers: int, original: Path, recorded: dict[str, np.ndarray]) -> None:
    data = EDMZip(str(original))
    data[0]  # the parent's file is open before the workers are forked
    order = PositionSampler(64, global_batch=7, seed=0)
    loader = DataLoader(data, batch_sampler=order, collate_fn=keep_batch, num_workers=workers)
    for indices, (images, _), _step in zip(order, loader, range(20), strict=False):
        assert np.array_equal(to_uint8(images).numpy(), recorded["images"][indices])


def test_damaged_images_are_named_or_left_out(
    original: Path, rewrite: Rewrite, recorded: dict[str, np.ndarray]
) -> None:
    png = zipfile.ZipFile(original).read("00000/img00000005.png")
    changed = str(rewrite({"00000/img00000005.png": png[:300], "00000/img00000009.png": b"no image"}))
    data = EDMZip(changed)
    assert np.array_equal(to_uint8(data[4][0]).numpy(), recorded["images"][4])
    for index in (5, 9):
        with pytest.raises(DamagedImageError, match=rf"img0000000{index}\.png' is damaged .*skip_damaged=true"):
            data[index]
    with pytest.warns(UserWarning, match=r"2 of 64 images are damaged and omitted: 00000/img00000005\.png, 00000/img"):
        whole = EDMZip(changed, skip_damaged=True)
    kept = [index for index in range(64) if index not in (5, 9)]
    assert np.array_equal(all_pixels(whole), recorded["images"][kept])
    _, conditions = whole.__getitems__(range(62))
    assert np.array_equal(conditions["labels"].numpy(), recorded["onehot_labels"][kept])


def test_flipped_bytes_are_found_by_the_zip_s_checksum(original: Path, tmp_path: Path) -> None:
    content = bytearray(original.read_bytes())
    with zipfile.ZipFile(original) as archive:
        entry = archive.getinfo("00000/img00000003.png")
    content[entry.header_offset + 500] ^= 1
    (tmp_path / "flipped.zip").write_bytes(content)
    data = EDMZip(str(tmp_path / "flipped.zip"))
    assert data[2][0].shape == (3, 16, 16)
    with pytest.raises(DamagedImageError, match=r"img00000003\.png' is damaged \(BadZipFile: Bad CRC-32"):
        data[3]


def test_bombs_and_paths_out_of_the_zip(rewrite: Rewrite, tmp_path: Path) -> None:
    """A labels file that unpacks to 200 MB is not unpacked; a name that climbs out of the zip is only a name."""
    bomb = rewrite({"dataset.json": b"[" + b" " * 200_000_000}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1_000_000
    with pytest.raises(ValueError, match="200,000,001 bytes are more than"):
        EDMZip(str(bomb))
    with pytest.raises(DamagedImageError, match=r"a\.png' is damaged \(.*pixels"):
        EDMZip(str(rewrite({"../../a.png": huge_png(60_000), "dataset.json": None})))[0]
    assert not (tmp_path.parent / "a.png").exists() and not (tmp_path.parents[1] / "a.png").exists()


@pytest.mark.parametrize(
    "labels, message",
    [
        ({"labels": [["00000/img00000000.png", 1]]}, r"no label for '00000/img00000001\.png', and 63 are missing"),
        ({"labels": 3}, r'expected \{"labels"'),
        ([], r'expected \{"labels"'),
        ({"labels": [[f"00000/img{i:08d}.png", -1] for i in range(64)]}, r"of '00000/img00000000\.png' is -1"),
        ({"labels": [[f"00000/img{i:08d}.png", [0.5, 1]] for i in range(64)]}, r"is \[0\.5, 1\], expected an integer"),
    ],
)
def test_labels_that_are_none(labels: object, message: str, rewrite: Rewrite) -> None:
    changed = str(rewrite({"dataset.json": json.dumps(labels).encode()}))
    with pytest.raises(ValueError, match=message):
        EDMZip(changed)
    assert EDMZip(changed, use_labels=False).label_dim == 0


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such zip or folder"):
        EDMZip(str(tmp_path / "absent.zip"))
    with pytest.raises(ValueError, match="it has no images"):
        EDMZip(str(tmp_path))
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(ValueError, match=r"text\.zip: expected a zip, and it is another file or damaged"):
        EDMZip(str(tmp_path / "text.zip"))


def test_the_fingerprint_knows_what_the_images_depend_on(original: Path, rewrite: Rewrite) -> None:
    data = EDMZip(str(original))
    png = zipfile.ZipFile(original).read("00000/img00000005.png")
    prints = [
        data.fingerprint(),
        EDMZip(str(original), xflip=True).fingerprint(),
        EDMZip(str(original), max_size=10).fingerprint(),
        EDMZip(str(original), resolution=8).fingerprint(),
        EDMZip(str(original), use_labels=False).fingerprint(),
        EDMZip(str(rewrite({"00000/img00000006.png": png}))).fingerprint(),
    ]
    assert len(set(prints)) == 6
    assert EDMZip(str(rewrite({}))).fingerprint() == data.fingerprint()

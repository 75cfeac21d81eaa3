"""The other formats: all hold the same digits, and each says what is wrong with a damaged one."""

import gzip
import inspect
import shutil
import struct
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from onestep.build.distillation import distill
from onestep.config import CONF
from onestep.data.dataset import ImageDataset, ImagesInMemory
from onestep.data.digits import Digits
from onestep.data.edm_zip import EDMZip
from onestep.data.hugging_face import HuggingFaceDataset
from onestep.data.idx import IDXImages
from onestep.data.image_folder import ImageFolder
from onestep.data.webdataset import WebDataset, find_shards
from onestep.images import to_uint8
from tests.helpers.configs import tiny_config

READERS: dict[str, Callable[..., ImageDataset]] = {
    "images.zip": EDMZip,
    "classes": ImageFolder,
    "shards": WebDataset,
    "shards/digits-{000..001}.tar": WebDataset,
    "shards/*.tar": WebDataset,
    "idx": lambda path, **options: IDXImages(path, split="train", **options),
    "table": lambda path, **options: HuggingFaceDataset(path, split="train", label_column="label", **options),
}


@pytest.fixture(scope="module")
def digits() -> ImagesInMemory:
    """What every store holds, read from its source."""
    source = Digits()
    assert source.labels is not None
    labels = source.labels[:60].argmax(1)
    order = torch.argsort(labels, stable=True)
    return ImagesInMemory(source.images[:60][order], labels[order], 10)


@pytest.mark.parametrize("place", READERS)
def test_every_format_gives_the_same(place: str, stores: Path, digits: ImagesInMemory) -> None:
    data = READERS[place](str(stores / place))
    assert (len(data), data.image_shape, data.label_dim) == (60, (1, 8, 8), 10)
    images, condition = data.__getitems__(range(60))
    assert torch.equal(to_uint8(images).float(), (digits.images + 1) * 120)  # 0 to 16 as 0 to 240
    assert digits.labels is not None and torch.equal(condition["labels"], digits.labels)
    options: dict[str, Any] = {"use_labels": False, "xflip": True, "max_size": 7, "random_seed": 1}
    few, zipped = READERS[place](str(stores / place), **options), EDMZip(str(stores / "images.zip"), **options)
    assert few.label_dim == 0 and len(few) == 14
    assert torch.equal(few.__getitems__(range(14))[0], zipped.__getitems__(range(14))[0])
    assert len({data.fingerprint(), few.fingerprint()}) == 2


def test_a_training_reads_a_zip_and_its_workers_change_nothing(stores: Path, tmp_path: Path) -> None:
    overrides = (
        "data=edm_zip",
        f"data.path={stores / 'images.zip'}",
        "training.total_images=32",
        "evaluation.samples=16",
    )
    for workers in (0, 2):
        distill(tiny_config(tmp_path / str(workers), *overrides, f"num_workers={workers}"))
    weights = [(tmp_path / str(n) / "generator" / "diffusion_pytorch_model.safetensors").read_bytes() for n in (0, 2)]
    assert weights[0] == weights[1]


def test_folder_of_classes(stores: Path, tmp_path: Path) -> None:
    shutil.copytree(stores / "classes", tmp_path / "copy")
    Image.new("L", (8, 8)).save(tmp_path / "copy" / "beside.png")
    with pytest.raises(ValueError, match=r"'beside\.png' is next to subfolders"):
        ImageFolder(str(tmp_path / "copy"))
    assert len(ImageFolder(str(tmp_path / "copy"), use_labels=False)) == 61
    Image.new("L", (9, 8)).save(tmp_path / "copy" / "digit_3" / "zz.png")
    (tmp_path / "copy" / "beside.png").unlink()
    data = ImageFolder(str(tmp_path / "copy"))
    number = data.names.index("digit_3/zz.png")
    with pytest.raises(ValueError, match=r"'digit_3/zz\.png' has the shape \(1, 8, 9\), expected .* \(1, 8, 8\)"):
        data[number]
    assert ImageFolder(str(tmp_path / "copy"), resolution=8)[number][0].shape == (1, 8, 8)
    (tmp_path / "copy" / "digit_4" / "aa.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"1 of 62 images are damaged and omitted: digit_4/aa\.jpg"):
        assert len(ImageFolder(str(tmp_path / "copy"), skip_damaged=True)) == 61
    with pytest.raises(ValueError, match="no such folder"):
        ImageFolder(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="channels=4: expected one of 1, 3"):
        ImageFolder(str(stores / "classes"), channels=4)  # type: ignore[arg-type]  # as a configuration may


def test_shards(stores: Path, tmp_path: Path) -> None:
    shard = stores / "shards" / "digits-000.tar"
    assert find_shards(str(stores / "shards" / "digits-00{0..1}.tar"))[0] == str(shard)
    with pytest.raises(ValueError, match=r"no such file: .*digits-002\.tar"):
        WebDataset(str(stores / "shards" / "digits-{000..002}.tar"))
    with pytest.raises(ValueError, match=r"\{a\.\.c\}: expected a range"):
        find_shards("digits-{a..c}.tar")
    content = shard.read_bytes()
    broken_files = {"cut.tar": content[:9000], "text.tar": b"x" * 2000, "packed.tar": gzip.compress(content)}
    for name, broken in broken_files.items():
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(ValueError, match=rf"{name}: expected an uncompressed tar"):
            WebDataset(str(tmp_path / name))
    with tarfile.open(shard) as old, tarfile.open(tmp_path / "unlabelled.tar", "w") as new:
        for member in old:
            if member.name != "0007.cls":
                new.addfile(member, old.extractfile(member))
    with pytest.raises(ValueError, match=r"the label of '.*unlabelled\.tar/0007' is None"):
        WebDataset(str(tmp_path / "unlabelled.tar"))
    assert len(WebDataset(str(tmp_path / "unlabelled.tar"), use_labels=False)) == 30


def test_members_that_are_no_images_are_never_read(tmp_path: Path) -> None:
    """A link out of the archive, a pickle and a path upwards: only the image is looked at, and nothing is written."""
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "../../up.png")
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        (tmp_path / "p").write_bytes(b"cos\nsystem\n(S'touch PWNED_MARKER'\ntR.")
        tar.add(tmp_path / "p", "b.pkl")
    data = WebDataset(str(tmp_path / "s.tar"))
    assert len(data) == 1 and (to_uint8(data[0][0]) == 9).all()
    assert not Path("PWNED_MARKER").exists() and not (tmp_path.parents[1] / "up.png").exists()


def test_idx(stores: Path, tmp_path: Path, digits: ImagesInMemory) -> None:
    padded = IDXImages(str(stores / "idx"), split="train", pad_to=11)
    image = padded[5][0]
    assert image.shape == (1, 11, 11)
    assert torch.equal(to_uint8(image[:, 1:9, 1:9]).float(), (digits.images[5] + 1) * 120)
    assert image[:, 0].eq(-1).all() and image[:, 9:].eq(-1).all() and image[:, :, 9:].eq(-1).all()
    with pytest.raises(ValueError, match="pad_to=7: expected at least the images' 8 x 8"):
        IDXImages(str(stores / "idx"), split="train", pad_to=7)
    with pytest.raises(ValueError, match="no t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz"):
        IDXImages(str(stores / "idx"), split="test")
    with pytest.raises(ValueError, match="split=validation: expected one of train, test"):
        IDXImages(str(stores / "idx"), split="validation")  # type: ignore[arg-type] # as a configuration may
    whole = (stores / "idx" / "train-images-idx3-ubyte").read_bytes()
    huge = struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**31, 2**31)
    for content, message in (
        (whole[:-1], "says 3,840 bytes, found 3,839 or more"),
        (whole + b"x", "says 3,840 bytes, found 3,841 or more"),
        (b"PK\3\4", "starts with 504b0304"),
        (huge, "its header has the shape"),
        (whole[:9], "its header has the shape|buffer size"),
    ):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            IDXImages(str(tmp_path), split="train")
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(ValueError, match="damaged"):
        IDXImages(str(tmp_path), split="train")


def test_hugging_face(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = str(stores / "table")
    assert HuggingFaceDataset(table, split="train").label_dim == 0
    with pytest.raises(ValueError, match="no column 'picture'; the columns are image, label"):
        HuggingFaceDataset(table, split="train", image_column="picture")
    with pytest.raises(ValueError, match="the column 'label' holds no images"):
        HuggingFaceDataset(table, split="train", image_column="label")
    by_folder = HuggingFaceDataset(str(stores / "classes"), split="train", label_column="label")
    assert len(by_folder) == 60 and by_folder.label_dim == 10
    with pytest.raises(ValueError, match="split 'nope'"):
        HuggingFaceDataset(str(stores / "classes"), split="nope")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'onestep\[datasets\]'"):
        HuggingFaceDataset(table, split="train")


@pytest.mark.parametrize("name", ["edm_zip", "image_folder", "webdataset", "hugging_face", "idx"])
def test_configured_defaults_are_the_classes(name: str) -> None:
    """What neither asks for is off in both, and nothing can be set in one alone."""
    config = OmegaConf.load(CONF / "data" / f"{name}.yaml")
    assert isinstance(config, DictConfig)
    parameters = inspect.signature(get_object(config.pop("_target_"))).parameters
    assert config.keys() == parameters.keys()
    for key, parameter in parameters.items():
        assert parameter.default is parameter.empty or parameter.default == config[key], key

"""Datasets as people have them: what counts as an image, as a class and as a label, and what is said about the rest."""

import io
import json
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from onestep.build.evaluation import sample_space
from onestep.data.edm_zip import EDMZip
from onestep.data.image_folder import ImageFolder
from onestep.data.prompts import read_prompts
from onestep.data.webdataset import WebDataset, find_shards
from tests.helpers.edm_models import tiny_denoiser
from tests.helpers.pictures import encode

PNG = encode(Image.new("L", (4, 4), 9))


def write(root: Path, *names: str, content: bytes = PNG) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zipped(path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def tarred(path: Path, *files: tuple[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


HIDDEN = (
    ".git/objects/x.png",
    ".ipynb_checkpoints/a.png",
    "__MACOSX/a/._0.png",
    "a/.hidden.png",
    "a/._0.png",
    "a/Thumbs.db",
)


@pytest.mark.filterwarnings("error:.*not read as images")
def test_hidden_files_are_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", "a/0.png", "b/0.png", *HIDDEN)
    assert list(ImageFolder(str(folder)).names) == ["a/0.png", "b/0.png"]
    names = dict.fromkeys(("a/0.png", *HIDDEN), PNG)
    assert list(EDMZip(zipped(tmp_path / "images.zip", names)).names) == ["a/0.png"]
    assert list(EDMZip(str(folder)).names) == ["a/0.png", "b/0.png"]
    assert len(WebDataset(tarred(tmp_path / "s.tar", *names.items()))) == 1


def test_each_folder_is_read_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", "a/0.png", "b/0.png", "b/deep/1.png")
    (folder / "a" / "up").symlink_to("..")
    (folder / "b" / "deep" / "self").symlink_to(".")
    (folder / "c").symlink_to(write(tmp_path / "elsewhere", "2.png"))
    assert list(ImageFolder(str(folder)).names) == ["a/0.png", "b/0.png", "b/deep/1.png", "c/2.png"]


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    """As in torchvision: without it, all later classes would have other numbers."""
    folder = write(tmp_path, "a/0.png", "c/0.PNG", "d/0.jfif")
    write(folder, "b/0.tif", "b/1.tif", content=b"")
    with pytest.warns(UserWarning, match=r"not read as images: 2 with \.tif"):
        with pytest.raises(ValueError, match=r"the class 'b' has no images .*data\.use_labels=false"):
            ImageFolder(str(folder))
        assert len(ImageFolder(str(folder), use_labels=False)) == 3


def test_numbers_as_names_of_classes(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"in the order of their names as text: 1, 10, 2"):
        data = ImageFolder(str(write(tmp_path / "plain", "1/x.png", "2/x.png", "10/x.png")))
    assert data.labels is not None and data.labels.tolist() == [0, 1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageFolder(str(write(tmp_path / "padded", "01/x.png", "02/x.png", "10/x.png")))


def test_fewer_classes_than_the_teacher_has(tmp_path: Path) -> None:
    folder = str(write(tmp_path, "a/x.png", "b/x.png"))
    data = ImageFolder(folder, num_classes=3)
    assert data[1][1]["labels"].tolist() == [0, 1, 0]
    space = sample_space(tiny_denoiser(label_dim=3), data)  # samples are compared with images of the same classes
    assert space.inputs(range(4))[1]["labels"].argmax(1).tolist() == [0, 1, 0, 1]
    assert ImageFolder(folder).class_cycle is None
    with pytest.raises(ValueError, match=r"data\.num_classes=1: .* has 2 classes; set at least 2"):
        ImageFolder(folder, num_classes=1)
    with pytest.warns(UserWarning, match="only 2 of 100 classes have images"):
        assert ImageFolder(folder, num_classes=100).label_dim == 100


def test_the_classes_of_a_teacher(tmp_path: Path) -> None:
    folder = str(write(tmp_path / "folders", "a/x.png", "b/x.png", "b/y.png"))
    data = ImageFolder(folder, num_classes=4, classes=[3, 1])
    assert data.__getitems__([0, 1, 2])[1]["labels"].argmax(1).tolist() == [3, 1, 1] and data.label_dim == 4
    flat = ImageFolder(str(write(tmp_path / "flat", "x.png", "y.png")), num_classes=4, classes=[3])
    assert flat.__getitems__([0, 1])[1]["labels"].argmax(1).tolist() == [3, 3] and flat.class_cycle == [3]
    for classes, message in (([4], "has 2 classes; expected 2 different numbers"), ([4, 4], "expected 2 different")):
        with pytest.raises(ValueError, match=rf"data\.classes=\[.*\]: .* {message}"):
            ImageFolder(folder, classes=classes)
    with pytest.raises(ValueError, match="has no classes; expected 1 different number, "):
        ImageFolder(folder, use_labels=False, classes=[0, 1])


IMAGES = {"a/0.png": PNG, "a/1.png": PNG}
PAIRS = [["a/0.png", 0], ["a/1.png", 1]]


@pytest.mark.parametrize(
    ("file", "labels"),
    [
        ("dataset.json", {"labels": [*PAIRS, *([f"b/{n}.png", 0] for n in range(20_000))]}),  # of a larger dataset
        ("Dataset.JSON", {"labels": PAIRS}),
        ("a/dataset.json", {"labels": PAIRS}),
        ("a/dataset.json", {"labels": [["0.png", 0], ["1.png", 1]]}),
        ("dataset.json", {"labels": [["a\\0.png", 0], ["./a/1.png", 1.0], ["a/0.png", 0]]}),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_labels_as_people_write_them(file: str, labels: object, encoding: str, tmp_path: Path) -> None:
    data = EDMZip(zipped(tmp_path / "i.zip", IMAGES | {file: json.dumps(labels).encode(encoding)}))
    assert data.labels is not None and data.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"dataset.json": {"labels": [*PAIRS, ["./a/0.png", 7]]}}, r"'a/0\.png' has two labels, 0 and 7"),
        ({"dataset.json": {"labels": [["a/0.png", 0.5], ["a/1.png", 1]]}}, r"the label of 'a/0\.png' is 0\.5"),
        ({"dataset.json": {"labels": PAIRS}, "a/dataset.json": {}}, r"two files of labels, 'dataset\.json' and 'a/"),
        ({"dataset.json": {"labels": [[3, 0]]}}, r'expected \{"labels": \[\[name, class\]'),
    ],
)
def test_labels_that_contradict(files: dict[str, object], message: str, tmp_path: Path) -> None:
    place = zipped(tmp_path / "i.zip", IMAGES | {name: json.dumps(value).encode() for name, value in files.items()})
    with pytest.raises(ValueError, match=message):
        EDMZip(place)


def test_absent_labels_are_said(tmp_path: Path) -> None:
    for labels in ({"labels": None}, {}):
        with pytest.warns(UserWarning, match="it has no labels: the images have no classes"):
            data = EDMZip(zipped(tmp_path / "i.zip", IMAGES | {"dataset.json": json.dumps(labels).encode()}))
        assert data.label_dim == 0
    with pytest.warns(UserWarning, match=r"it has no \.cls members"):
        assert WebDataset(tarred(tmp_path / "s.tar", ("0.png", PNG), ("0.json", b'{"class": 3}'))).label_dim == 0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            (("0.png", PNG), ("0.cls", b"a retriever, from the left")),
            r"s\.tar, '0\.cls': the class is 'a retriever",
        ),
        ((("0.png", PNG), ("0.cls", "²".encode())), r"s\.tar, '0\.cls': the class is '²'"),
        ((("0.png", PNG), ("0.cls", b"-1")), r"'0\.cls': the class is '-1'"),
        ((("0.png", PNG), ("0.cls", b"1"), ("0.cls", b"2")), r"'0\.cls' and '0\.cls' have one key, '0'.* two classes"),
        ((("0.png", PNG), ("0.cls", b"1" * 2000)), r"s\.tar, '0\.cls': 2,000 bytes are more than 1,024"),
        ((("2.5.png", PNG), ("2.6.png", PNG)), r"s\.tar: '2\.5\.png' and '2\.6\.png' have one key, '2'"),
        ((("0.jpg", PNG), ("0.mask.png", PNG)), r"'0\.jpg' and '0\.mask\.png' .*data\.image_suffix"),
    ],
)
def test_samples_that_are_ambiguous(files: tuple[tuple[str, bytes], ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        WebDataset(tarred(tmp_path / "s.tar", *files))


def test_other_members_are_counted(tmp_path: Path) -> None:
    shard = tarred(tmp_path / "s.tar", *((name, PNG) for name in ("0.png", "0.json", "0.txt", "1.tif", "2.mask.tif")))
    with pytest.warns(UserWarning, match=r"s\.tar: files that are not read as images: 2 with \.tif; images end in"):
        assert len(WebDataset(shard, use_labels=False)) == 1


def test_the_suffix_chooses_among_images(tmp_path: Path) -> None:
    other = encode(Image.new("L", (4, 4), 200))
    shard = tarred(tmp_path / "s.tar", ("0.jpg", PNG), ("0.mask.png", other), ("0.cls", b" 1   \n"), ("1.cls", b"0"))
    with pytest.warns(UserWarning, match=r"with a class and without an image are omitted: .*s\.tar/1"):
        data = WebDataset(shard, image_suffix="mask.png")
    assert len(data) == 1 and data.label_dim == 2 and data[0][0].mean().item() == pytest.approx(200 / 127.5 - 1)


def test_patterns_of_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stands for more than 1,048,576 files"):
        find_shards(str(tmp_path / "{0..9999}{0..9999}.tar"))
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no tar files in it; compressed shards .*decompressed"):
        find_shards(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("\ufeffa cat\r\nthe sea\ra dog\n", ["a cat", "the sea", "a dog"]),
        ("one\u2028prompt\n\u200b\n \ufeff\ntwo\x85\x0clines", ["one\u2028prompt", "two\x85\x0clines"]),
    ],
)
def test_lines_of_prompts(content: str, prompts: list[str], tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(content.encode())
    assert read_prompts(str(tmp_path / "p.txt"), "prompt") == prompts


def test_rows_without_a_prompt(tmp_path: Path, parquet: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"column 'prompt', row 1: None is not text"):
        read_prompts(str(parquet(prompt=["a", None])), "prompt")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(ValueError, match="it has no prompts"):
        read_prompts(str(tmp_path / "bom.txt"), "prompt")


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    def build(**columns: list[object]) -> Path:
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.table(columns), tmp_path / "table.parquet")
        return tmp_path / "table.parquet"

    return build

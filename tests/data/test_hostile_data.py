"""Datasets from others: a hostile one is refused in one line, and no image of it takes long or much memory."""

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from onestep.cache import CachedRows, ChunkCache
from onestep.data.edm_zip import EDMZip
from onestep.data.hugging_face import HuggingFaceDataset
from onestep.data.idx import IDXImages
from onestep.data.image_folder import ImageFolder
from onestep.data.prompts import ParquetImages, read_prompts
from onestep.data.webdataset import WebDataset
from onestep.images import DamagedImageError, decode_image
from tests.helpers.hostile import MARKER, SPECIAL, bounded, place, write_npz
from tests.helpers.pictures import encode, huge_png

PNG = encode(Image.new("L", (4, 4), 9))
Make = Callable[[Path], object]


def zip_of(changes: dict[str, bytes]) -> Make:
    """Reads a zip of two images with ``changes``."""

    def make(path: Path) -> object:
        with zipfile.ZipFile(path / "i.zip", "w") as archive:
            for name, content in ({"a.png": PNG, "b.png": PNG} | changes).items():
                archive.writestr(name, content)
        return EDMZip(str(path / "i.zip"))[0]

    return make


def patched_zip(old: bytes, new: bytes) -> Make:
    """Reads a zip of one image in whose directory ``new`` takes the place of ``old``."""

    def make(path: Path) -> object:
        with zipfile.ZipFile(path / "i.zip", "w") as archive:
            archive.writestr("a.png", PNG)
        content = (path / "i.zip").read_bytes()
        start = content.index(b"PK\1\2")
        assert old in content[start:]
        (path / "i.zip").write_bytes(content[:start] + content[start:].replace(old, new))
        return EDMZip(str(path / "i.zip"))[0]

    return make


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> Make:
    def make(path: Path) -> object:
        with tarfile.open(path / "s.tar", "w") as tar:
            for member, content in members:
                tar.addfile(member, io.BytesIO(content))
        return WebDataset(str(path / "s.tar"))[0]

    return make


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, kind, link
    return made


def long_header(kind: bytes) -> Make:
    """Reads a tar whose extended header claims two gigabytes, in a sparse file that has them."""

    def make(path: Path) -> object:
        claim = member("x", 2**31, kind).tobuf(tarfile.GNU_FORMAT)
        with (path / "s.tar").open("wb") as file:
            file.write(claim)
            file.truncate(2**31 + 2**20)
        return WebDataset(str(path / "s.tar"))

    return make


def idx(header: bytes, content: bytes = b"", zeros: int = 0) -> Make:
    def make(path: Path) -> object:
        with gzip.open(path / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
            file.write(header + content)
            for _ in range(zeros >> 24):
                file.write(bytes(1 << 24))
        return IDXImages(str(path), split="train", use_labels=False)

    return make


def at(name: str, content: object, read: Callable[[Path], object]) -> Make:
    """Reads the folder with the file ``name`` of this content."""

    def make(path: Path) -> object:
        place(path / name, content)
        return read(path)

    return make


def prompts(path: Path) -> object:
    return read_prompts(str(path / "p.txt"), "prompt")


def labels(content: bytes) -> Make:
    return zip_of({"dataset.json": content})


def npz_bomb(path: Path) -> object:
    """A zip of kilobytes with an image of 300 megabytes of zeros."""
    write_npz(path / "i.zip", {"a.png": PNG}, zeros=300 << 20)
    return EDMZip(str(path / "i.zip"))[0]


def parquet(column: Callable[[], object], read: Callable[[str, str], object], **options: object) -> Make:
    """Reads a parquet file with one column ``x``."""

    def make(path: Path) -> object:
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.table({"x": column()}), path / "t.parquet", **options)
        return read(str(path / "t.parquet"), "x")

    return make


def repeated(value: object, rows: int = 200_000) -> Callable[[], object]:
    """A column of one value, which a file holds once."""

    def column() -> object:
        import pyarrow as pa

        return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))

    return column


def first_image(path: str, column: str) -> object:
    try:
        return decode_image(ParquetImages(path, column)[0])
    except DamagedImageError as error:  # PromptDataset names the file
        raise ValueError(f"{path}: {error}") from error


def loading_script(path: Path) -> object:
    (path / f"{path.name}.py").write_text(f"open({str(path / MARKER)!r}, 'w')")
    return HuggingFaceDataset(str(path), split="train")


def half_parquet(path: Path) -> object:
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"image": [PNG] * 9}), path / "t.parquet")
    content = (path / "t.parquet").read_bytes()
    (path / "t.parquet").write_bytes(content[: len(content) // 3] + content[-len(content) // 2 :])
    return ParquetImages(str(path / "t.parquet"), "image")[0]


def wrong_column(path: Path) -> object:
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"image": [[[PNG]]]}), path / "t.parquet")
    return ParquetImages(str(path / "t.parquet"), "image")[0]


CASES: dict[str, Make] = {
    "zip: deep labels": labels(b"[" * 100_000),
    "zip: labels that are text": labels(json.dumps({"labels": "ab"}).encode()),
    "zip: labels of another kind": labels(json.dumps({"labels": [[["a.png"], 0]]}).encode()),
    "zip: huge labels": labels(json.dumps({"labels": [["a.png", 2**70], ["b.png", 0]]}).encode()),
    "zip: NaN as a label": labels(b'{"labels": [["a.png", NaN], ["b.png", 0]]}'),
    "zip: no UTF-8": labels(b'{"labels": [["\xff", 0]]}'),
    "zip: a link as an image": zip_of({"a.png": b"/etc/passwd"}),
    "zip: an image of text": zip_of({"a.png": b"<?php system('touch MARKER'); ?>"}),
    "zip: a PostScript program": zip_of({"a.png": b"%!PS-Adobe-3.0 EPSF-3.0\n(touch MARKER) (w) file\n"}),
    "zip: a pixel bomb": zip_of({"a.png": huge_png(60_000)}),
    "zip: encrypted": patched_zip(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"),
    "zip: a version that there is not": patched_zip(b"\x14\0\0\0\0\0", b"\x7f\0\0\0\0\0"),
    "zip: a method that there is not": patched_zip(b"\x14\0\0\0\0\0", b"\x14\0\0\0\x63\0"),
    "zip: a size of gigabytes": patched_zip(struct.pack("<I", len(PNG)) * 2, struct.pack("<2I", len(PNG), 2**31)),
    "zip: zeros": npz_bomb,
    "tar: links alone": tar_of((member("a.png", kind=tarfile.SYMTYPE, link="/etc/passwd"), b"")),
    "tar: devices alone": tar_of((member("a.png", kind=tarfile.CHRTYPE), b"")),
    "tar: an image of petabytes": at(
        "s.tar",
        member("a.png", 2**50).tobuf(tarfile.GNU_FORMAT) + bytes(1024),
        lambda path: WebDataset(str(path / "s.tar"))[0],
    ),
    "tar: an extended header of gigabytes": long_header(tarfile.XHDTYPE),
    "tar: a name of gigabytes": long_header(tarfile.GNUTYPE_LONGNAME),
    "tar: a class of digits": tar_of((member("a.png", len(PNG)), PNG), (member("a.cls", 30), b"9" * 30)),
    "idx: a shape of petabytes": idx(struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**31, 2**31)),
    "idx: more than it says": idx(struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 2), zeros=1 << 28),
    "idx: no images": idx(struct.pack(">4B3I", 0, 0, 8, 3, 0, 8, 8)),
    "idx: images without pixels": idx(struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 0, 8)),
    "idx: images of one pixel": idx(struct.pack(">4B3I", 0, 0, 8, 3, 2**29, 1, 1)),
    "hugging face: a script": loading_script,
    "parquet: images of terabytes": parquet(repeated(b"x" * 2**20), first_image),
    "parquet: texts that unpack": parquet(
        lambda: ["x" * 2**20] * 300, read_prompts, use_dictionary=False, compression="zstd"
    ),
    "parquet: lists of texts": parquet(lambda: [["a"]], read_prompts),
    "parquet: damaged": half_parquet,
    "parquet: nested": wrong_column,
    "prompts: gigabytes": at("p.txt", "sparse", prompts),
    "prompts: no UTF-8": at("p.txt", b"\xff\xfea\0", prompts),
} | {
    f"{reader}: {kind}": at(name, kind, read)
    for kind in SPECIAL
    for reader, name, read in (
        ("folder", "a.png", lambda path: ImageFolder(str(path))[0]),
        ("zip", "i.zip", lambda path: EDMZip(str(path / "i.zip"))[0]),
        ("tar", "s.tar", lambda path: WebDataset(str(path / "s.tar"))[0]),
        ("prompts", "p.txt", prompts),
        ("parquet", "p.parquet", lambda path: read_prompts(str(path / "p.parquet"), "prompt")),
        ("idx", "train-images-idx3-ubyte", lambda path: IDXImages(str(path), split="train")),
    )
    if (reader, kind) != ("zip", "folder")  # a folder of EDM's format, without images
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_a_hostile_dataset_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with bounded(), pytest.raises(ValueError) as caught:
        CASES[case](tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message and "\n" not in message and len(message) < 1000, message
    assert not any(path.name == MARKER for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    "image",
    [Image.new("L", (60_000, 1)), Image.new("1", (13_000, 5_000)), Image.new("LA", (8_000, 8_000))],
    ids=["long", "one bit", "transparent"],
)
def test_large_images_are_read_within_bounds(image: Image.Image) -> None:
    encoded = encode(image)
    with bounded():
        assert decode_image(encoded, size=(8, 8), channels=3).shape == (3, 8, 8)


def test_a_text_of_many_rows_is_held_once(tmp_path: Path) -> None:
    with bounded():
        prompts = parquet(repeated("x" * 2**20), read_prompts)(tmp_path)
    assert isinstance(prompts, list) and len(prompts) == 200_000 and len(set(map(id, prompts))) == 1


def test_a_chunk_with_another_bit_is_computed_again(tmp_path: Path) -> None:
    computed: list[int] = []

    def compute(chunk: int) -> dict[str, torch.Tensor]:
        computed.append(chunk)
        return {"rows": torch.full((2, 8), float(chunk))}

    def fill() -> CachedRows:
        rows = CachedRows(ChunkCache(str(tmp_path), "key", "rows", "setting"), ["a", "b", "c"], rows=2)
        rows.fill(compute, "rows")
        return rows

    fill()
    file = tmp_path / "key" / "b.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert fill()[[2, 5]]["rows"][:, 0].tolist() == [1.0, 2.0]
    assert computed == [0, 1, 2, 1]


def test_non_finite_values_are_not_kept(tmp_path: Path) -> None:
    cache = ChunkCache(str(tmp_path), "key", "latents", "setting")
    with pytest.raises(ValueError, match=r"the latents have non-finite values \(rows\): check the weights"):
        cache.write("a", {"rows": torch.tensor([1.0, float("nan")])})
    assert not list((tmp_path / "key").iterdir())

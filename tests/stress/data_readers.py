"""The readers of datasets from others, each with seeds to damage."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from onestep.data.edm_zip import EDMZip
from onestep.data.idx import IDXImages
from onestep.data.prompts import ParquetImages, read_prompts
from onestep.data.webdataset import WebDataset
from onestep.images import decode_image
from tests.stress.mutations import mutate_json, mutate_zip
from tests.stress.reader import Reader


def _pictures(count: int = 4) -> list[bytes]:
    pictures = []
    for index in range(count):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8), 20 * index, np.uint8)).save(file, "PNG" if index % 2 else "JPEG")
        pictures.append(file.getvalue())
    return pictures


def edm_zip(folder: Path) -> Reader:
    file = io.BytesIO()
    names = [f"00000/img{index:08d}.png" for index in range(4)]
    with zipfile.ZipFile(file, "w") as archive:
        for name, picture in zip(names, _pictures(), strict=True):
            archive.writestr(name, picture)
        archive.writestr("dataset.json", json.dumps({"labels": [[name, i % 2] for i, name in enumerate(names)]}))

    def read() -> None:
        images = EDMZip(str(folder / "a.zip"))
        for index in range(len(images)):
            images[index]

    return Reader(folder / "a.zip", [file.getvalue()], read, mutate_zip)


def tar(folder: Path) -> Reader:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for index, picture in enumerate(_pictures()):
            for suffix, content in ((".png", picture), (".cls", str(index % 2).encode())):
                member = tarfile.TarInfo(f"{index:04d}{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    def read() -> None:
        images = WebDataset(str(folder / "a.tar"))
        for index in range(len(images)):
            images[index]

    return Reader(folder / "a.tar", [file.getvalue()], read)


def parquet(folder: Path) -> Reader:
    import pyarrow
    import pyarrow.parquet

    path = folder / "a.parquet"
    seeds = []
    for compression in ("none", "snappy"):
        rows = {"prompt": [f"a {i}" for i in range(4)], "image": [{"bytes": p, "path": None} for p in _pictures()]}
        pyarrow.parquet.write_table(pyarrow.table(rows), path, compression=compression)
        seeds.append(path.read_bytes())

    def read() -> None:
        read_prompts(str(path), "prompt")
        images = ParquetImages(str(path), "image")
        for index in range(len(images)):
            images[index]

    return Reader(path, seeds, read)


def image(folder: Path) -> Reader:
    """A picture of each format and mode, with all that a file can say of it besides its pixels."""
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = []
    for kind, mode in (("PNG", "P"), ("PNG", "LA"), ("PNG", "I;16"), ("PNG", "1"), ("JPEG", "CMYK"), ("JPEG", "L"),
                       ("WEBP", "RGBA"), ("BMP", "RGB"), ("GIF", "P")):  # fmt: skip
        picture, said = grey.convert(mode), {} if kind in ("BMP", "GIF") else {"exif": exif, "icc_profile": bytes(200)}
        for frames in ([], [picture.rotate(90)]) if kind in ("PNG", "WEBP", "GIF") else ([],):
            several = {"save_all": True, "append_images": frames} if frames else {}
            picture.save(file := io.BytesIO(), kind, **said, **several)
            seeds.append(file.getvalue())
    path = folder / "a.png"
    return Reader(path, seeds, lambda: decode_image(path.read_bytes(), (4, 4), channels=3))


def idx(folder: Path) -> Reader:
    header = bytes([0, 0, 8, 3]) + np.array([2, 4, 4], ">u4").tobytes()
    path = folder / "train-images-idx3-ubyte"
    return Reader(path, [header + bytes(32)], lambda: IDXImages(str(folder), split="train", use_labels=False)[0])


def packed_idx(folder: Path) -> Reader:
    reader = idx(folder)
    seeds = [gzip.compress(seed) for seed in reader.seeds]
    return Reader(folder / "train-images-idx3-ubyte.gz", seeds, reader.read)


def labels(folder: Path) -> Reader:
    names = [f"img{index}.png" for index in range(4)]
    for name, picture in zip(names, _pictures(), strict=True):
        (folder / name).write_bytes(picture)
    seeds = [json.dumps({"labels": [[name, i % 2] for i, name in enumerate(names)]}).encode()]
    return Reader(folder / "dataset.json", seeds, lambda: EDMZip(str(folder))[0], mutate_json)


def prompts(folder: Path) -> Reader:
    seeds = ["\ufeffa cat\r\na dog\rthe sea\u2028in two\n\u200b\n".encode(), b"one\n"]
    return Reader(folder / "a.txt", seeds, lambda: read_prompts(str(folder / "a.txt"), "prompt"))


DATA_READERS = {
    "zip": edm_zip,
    "tar": tar,
    "parquet": parquet,
    "image": image,
    "idx": idx,
    "packed_idx": packed_idx,
    "labels": labels,
    "prompts": prompts,
}

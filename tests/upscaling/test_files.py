"""Photographs of every kind, the files of their results, and the work through a folder."""

import io
import os
import socket
import struct
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from onestep.denoiser import Condition
from onestep.files import hash_file
from onestep.upscaling.files import Job, find_images, plan, unfinished, upscale_files
from onestep.upscaling.photograph import FileFormat, read_photograph
from onestep.upscaling.tiles import Tiling
from tests.helpers.upscaling import (
    ODD_FILES,
    SRGB,
    encoded,
    identity,
    local_student,
    make_upscaler,
    picture,
    write_odd_files,
)


def run(
    images: list[Path], output: Path, factor: float = 2, student: object = identity, compare: bool = False
) -> dict[Path, str]:
    """The photographs that could not be upscaled by a student of x2."""
    jobs = unfinished(plan(images, [], output, None), "seed=0", compare, overwrite=False)
    return dict(upscale_files(jobs, make_upscaler(student, factor=2), factor, "seed=0", compare))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[Path, str]]:
    """A folder of odd files, that of their results, and the reasons for those without."""
    folder = tmp_path_factory.mktemp("odd")
    write_odd_files(folder / "in")
    images, others = find_images([str(folder / "in")])
    assert len(images) == len(ODD_FILES) and not others
    return folder / "in", folder / "out", run(images, folder / "out")


def test_odd_files_are_written_or_named(odd: tuple[Path, Path, dict[Path, str]]) -> None:
    folder, output, failed = odd
    for job in plan([folder / name for name in ODD_FILES], [], output, None):
        expected = ODD_FILES[job.image.name][1]
        if isinstance(expected, str):
            assert expected in failed[job.image]
            continue
        with Image.open(job.result) as image:
            image.load()
            assert (image.mode, image.size) == expected, job
            assert 0x0112 not in image.getexif()
    assert len(failed) + len(list(output.iterdir())) == len(ODD_FILES)


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("animated.gif", "preview.jpg"):
        (tmp_path / name).write_bytes(ODD_FILES[name][0]())
    run([tmp_path / "animated.gif", tmp_path / "preview.jpg"], tmp_path / "out")
    printed = capsys.readouterr().err
    assert f"{tmp_path / 'animated.gif'}: the first image of an animation" in printed
    assert printed.count("the first image") == 1


def test_pixels_and_metadata_are_kept(odd: tuple[Path, Path, dict[Path, str]]) -> None:
    """A factor of 1 gives the photographs themselves."""
    folder, output, _ = odd
    once = output.parent / "once"
    run([folder / name for name in ("turned.jpg", "grey16.png", "palette_alpha.png", "profile.png")], once, factor=1)
    with Image.open(once / "turned.png") as image, Image.open(folder / "turned.jpg") as before:
        upright = before.transpose(Image.Transpose.ROTATE_270)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(upright)).mean() < 30  # bicubic, there and back
        assert image.getexif()[0x010F] == "maker"
        assert image.getexif().get_ifd(0x8769) == {0xA002: 7}
    with Image.open(once / "grey16.png") as image:
        inner = (slice(2, -2), slice(2, -2))
        expected = 1000 * np.arange(63).reshape(7, 9)
        assert np.abs(np.asarray(image).astype(int) - expected)[inner].max() < 30
    with Image.open(once / "profile.png") as image:
        assert image.info["icc_profile"] == SRGB
    with Image.open(output / "palette_alpha.png") as image, Image.open(folder / "palette_alpha.png") as before:
        expected = np.asarray(before.convert("RGBA").getchannel("A").resize((18, 14), Image.Resampling.BICUBIC))
        assert np.abs(np.asarray(image.getchannel("A")).astype(int) - expected).max() <= 1


def test_tiff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pixels, metadata and the levels of 16 bits, in and out, without the tags of the original's storage."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0111], exif[0x0142] = "maker", 7, 3  # with an offset of strips, and a tile's width
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    (tmp_path / "from.png").write_bytes(encoded(picture("RGBA"), exif=exif, icc_profile=SRGB))
    names = ("grey16.tif", "big_endian.tiff", "rgb16.tif", "pages.tif", "cmyk.tif")
    for name in names:
        (tmp_path / name).write_bytes(ODD_FILES[name][0]())
    jobs = plan([tmp_path / name for name in ("from.png", *names)], [], tmp_path / "out", "tiff")
    assert upscale_files(jobs, make_upscaler(identity, factor=2), 1, "seed=0", False) == {}
    assert f"{tmp_path / 'pages.tif'}: the first of several images" in capsys.readouterr().err
    assert unfinished(jobs, "seed=0", False, overwrite=False) == []
    with Image.open(tmp_path / "out" / "from.tif") as image:
        assert (image.format, image.mode, image.info["icc_profile"]) == ("TIFF", "RGBA", SRGB)
        assert image.getexif()[0x010F] == "maker" and 0x0142 not in image.getexif()
        assert image.getexif().get_ifd(0x8769)[0x9003] == "2020:01:01 00:00:00"
        with Image.open(tmp_path / "from.png") as before:
            assert np.array_equal(np.asarray(image)[..., 3], np.asarray(before)[..., 3])
    for name in ("grey16", "big_endian"):
        with Image.open(tmp_path / "out" / f"{name}.tif") as image:
            assert image.mode == "I;16" and np.ptp(np.asarray(image)) > 60_000
    levels = read_photograph(tmp_path / "rgb16.tif").levels
    assert levels[..., 0].tolist() == levels[..., 1].tolist() == np.arange(63).reshape(7, 9).tolist()
    assert (levels[..., 2] == 255).all()


def test_grey_whose_zero_is_white(tmp_path: Path) -> None:
    content = bytearray(ODD_FILES["grey16.tif"][0]())
    with Image.open(io.BytesIO(content)) as image:
        expected = 2**16 - 1 - np.asarray(image).astype(int)
    entry = content.index(struct.pack("<HHI", 262, 3, 1))
    content[entry + 8 : entry + 10] = b"\0\0"
    (tmp_path / "a.tif").write_bytes(bytes(content))
    assert np.array_equal(read_photograph(tmp_path / "a.tif").levels[..., 0], expected)


def test_sixteen_bits_of_transparent_grey(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[0, 300], [65535, 300]], np.uint16))
    (tmp_path / "a.png").write_bytes(encoded(grey, transparency=300))
    photograph = read_photograph(tmp_path / "a.png")
    assert photograph.levels[..., 0].tolist() == [[0, 1], [255, 1]]
    assert photograph.alpha is not None and photograph.alpha[..., 0].tolist() == [[255, 0], [255, 0]]


def test_the_other_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture("RGBA")))
    (tmp_path / "b.png").write_bytes(encoded(picture(), exif=(exif := Image.Exif()), icc_profile=SRGB))
    assert not exif
    jobs = plan([tmp_path / "a.png", tmp_path / "b.png"], [], tmp_path / "out", "jpeg")
    failed = upscale_files(jobs, make_upscaler(identity, factor=2), 2, "seed=0", False)
    assert failed == {tmp_path / "a.png": "it has transparency, which JPEG cannot store: use format=png"}
    assert f"skipped {tmp_path / 'a.png'}: it has" in capsys.readouterr().err
    with Image.open(tmp_path / "out" / "b.jpg") as image:
        assert (image.format, image.info["icc_profile"]) == ("JPEG", SRGB)
    (tmp_path / "long.png").write_bytes(encoded(picture("L", 9000, 1)))
    [reason] = run([tmp_path / "long.png"], tmp_path / "x.webp").values()
    assert reason == "18000 x 2 pixels are more than webp can store, 16,383 a side"


def make(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(picture("L")))
    return [folder / name for name in names]


def test_photographs_are_found(tmp_path: Path) -> None:
    first, second, _, _ = make(tmp_path, "a.png", "b.JPG", "sub/c.png", ".hidden.png")
    (tmp_path / "notes.txt").write_text("")
    assert find_images([str(tmp_path)]) == ([first, second], [tmp_path / "notes.txt"])
    assert find_images([f"{tmp_path}/*.png", str(first), f"{tmp_path}/[b]*"])[0] == [first, second]
    for path, message in ((tmp_path / "sub" / "d*.png", "no such file"), (tmp_path / "e", "no such file")):
        with pytest.raises(ValueError, match=f"^{path.name[:1]}?.*: {message}$"):
            find_images([str(path)])
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="pipe.png: expected a file, not a folder, a pipe or a device"):
        find_images([str(tmp_path / "pipe.png")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="none of its 0 files is a photograph"):
        find_images([str(tmp_path / "empty")])


@pytest.mark.parametrize(
    "images, output, format, results",
    [
        (["in/a.jpg", "in/b.png"], "out", None, ["out/a.png", "out/b.png"]),
        (["in/a.jpg", "in/a.png", "in/b.png"], "out", "webp", ["out/a.jpg.webp", "out/a.png.webp", "out/b.webp"]),
        (["in/a.jpg"], "large.JPEG", None, ["large.JPEG"]),
        (["in/a.jpg"], ".", None, ["a.png"]),
        (["in/a.jpg", "in/b.jpg"], "large.png", None, "names one picture, for 2 photographs"),
        (["in/a.jpg"], "large.png", "webp", "format=webp: -o .*large.png is another format"),
        (["in/a.png"], "in", None, "in/a.png would overwrite a photograph"),
        (["compare/a.png"], ".", None, "compare/a.png would overwrite a photograph"),
        (["in/a.png"], "in/a.png", None, "in/a.png would overwrite a photograph"),
        (["in/a.png", "b/A.png"], "out", None, "in/a.png and .*b/A.png would both become"),
        (["in/a.png"], "file", None, "it is a file: give a folder"),
        (["folder", "folder/a.jpg"], "folder", None, "the next start would take the results for photographs"),
    ],
)
def test_the_files_of_the_results(
    images: list[str], output: str, format: FileFormat | None, results: list[str] | str, tmp_path: Path
) -> None:
    made = make(tmp_path, *(name for name in images if "." in name), "file")
    folders = [tmp_path / name for name in images if "." not in name]
    if isinstance(results, list):
        assert plan(made[:-1], folders, tmp_path / output, format) == [
            Job(image, tmp_path / name) for image, name in zip(made, results, strict=False)
        ]
        return
    with pytest.raises(ValueError, match=results):
        plan(made[:-1], folders, tmp_path / output, format, compare=True)


def test_a_killed_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make(tmp_path, "a.png", "b.png", "c.png")
    calls = count()

    def dying(latents: Tensor, condition: Condition, noises: Iterator[Tensor]) -> Tensor:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return local_student(3)(latents, condition, noises)

    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(images, output, student=dying, compare=True)
    assert [file.name for file in output.glob("*.*")] == ["a.png"]
    (output / f".writing_{socket.gethostname()}_999999999_b.png").touch()  # of a process that is gone
    before = hash_file(output / "a.png")
    assert run(images, output, student=dying, compare=True) == {}
    assert next(calls) == 4  # one evaluation of the first, one in vain, two
    assert hash_file(output / "a.png") == before
    assert sorted(file.name for file in output.rglob("*.*")) == ["a.png", "a.png", "b.png", "b.png", "c.png", "c.png"]
    with Image.open(output / "compare" / "a.png") as both, Image.open(output / "a.png") as after:
        assert np.array_equal(np.asarray(both)[:, 18:], np.asarray(after))
    (output / "compare" / "b.png").unlink()
    assert [job.image for job in unfinished(plan(images, [], output, None), "seed=0", True, False)] == [images[1]]


@pytest.mark.parametrize("change", ["settings", "photograph", "foreign"])
def test_results_of_others_are_refused(change: str, tmp_path: Path) -> None:
    [image] = make(tmp_path, "a.png")
    run([image], tmp_path / "out")
    jobs = plan([image], [], tmp_path / "out", None)
    description = "seed=1" if change == "settings" else "seed=0"
    if change == "photograph":
        image.write_bytes(encoded(picture("L", 5, 5)))
    elif change == "foreign":
        (tmp_path / "out" / "a.png").write_text("mine")
    with pytest.raises(ValueError, match=r"a\.png exists, of other settings or another photograph: .* overwrite=true$"):
        unfinished(jobs, description, False, overwrite=False)
    assert unfinished(jobs, description, False, overwrite=True) == jobs


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, path: Path, *arguments: object, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    [image] = make(tmp_path, "a.png")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run([image], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_memory_is_that_of_the_pictures(tmp_path: Path) -> None:
    """A photograph of 3 megapixels by a factor of 4 takes less than 2 GB above the interpreter with its modules."""
    import resource

    image = Image.effect_noise((2000, 1500), 50).convert("RGB")
    (tmp_path / "a.jpg").write_bytes(encoded(image, "JPEG"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    jobs = plan([tmp_path / "a.jpg"], [], tmp_path / "out", None)
    with torch.no_grad():
        upscale_files(jobs, make_upscaler(identity, fix="wavelet", tiling=Tiling(256, 16)), 4, "", False)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6 < 2

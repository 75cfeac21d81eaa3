"""Students of super-resolution without training, and photographs of every kind that Pillow writes."""

import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageCms, TiffImagePlugin
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.evaluation.generate import SampleFunction
from onestep.upscaling.colour import ColourFix
from onestep.upscaling.tiles import Tiling
from onestep.upscaling.upscaler import Upscaler


def identity(latents: Tensor, condition: Condition, noises: Iterator[Tensor]) -> Tensor:
    """The bicubic picture itself."""
    return condition["image"]


def local_student(channels: int) -> SampleFunction:
    """Two convolutions of the picture and of two noises, which reach 4 pixels far, and details of a few grey levels."""
    rng = torch.Generator().manual_seed(0)
    first = torch.randn((8, 3 * channels, 5, 5), generator=rng) / 20
    second = torch.randn((channels, 8, 5, 5), generator=rng) / 20

    def student(latents: Tensor, condition: Condition, noises: Iterator[Tensor]) -> Tensor:
        given = torch.cat([latents, next(noises), condition["image"]], 1)
        return condition["image"] + nn.functional.conv2d(
            nn.functional.conv2d(given, first, padding=2).tanh(), second, padding=2
        )

    return student


def make_upscaler(
    student: SampleFunction, channels: int = 3, factor: float = 4, tiling: Tiling | None = None, batch_size: int = 3,
    seed: int = 0, fix: ColourFix = "none",
) -> Upscaler:  # fmt: skip
    accelerator = Accelerator(cpu=True)
    return Upscaler(student, channels, factor, tiling or Tiling(64, 16), batch_size, seed, fix, accelerator)


def pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Levels [H, W, C] of 8 bits."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def picture(mode: str = "RGB", width: int = 9, height: int = 7) -> Image.Image:
    """A picture of a mode of Pillow, with every opacity if it has one."""
    image = Image.fromarray(pixels(height, width)).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(pixels(height, width, 1, seed=1)[..., 0]))
    return image


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The bytes of an image's file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _turned(format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    exif[0x010F] = "maker"
    exif.get_ifd(0x8769)[0xA002] = 9  # the width
    return encoded(picture(), format, exif=exif)


def _animation(format: str) -> bytes:
    return encoded(picture(), format, save_all=True, append_images=[picture("L").convert("RGB")])


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
_GREY16 = np.arange(63, dtype=np.uint16).reshape(7, 9) * 1000
_INTEGERS = Image.fromarray(np.array([[-1, 70_000]], np.int32))
_CUT = encoded(picture(width=90, height=90), "JPEG")

#: Files by name, with the mode and the size of the picture upscaled by 2, or a part of the reason that there is none.
ODD_FILES: dict[str, tuple[Callable[[], bytes], tuple[str, tuple[int, int]] | str]] = {
    "alpha.png": (lambda: encoded(picture("RGBA")), ("RGBA", (18, 14))),
    "alpha.webp": (lambda: encoded(picture("RGBA"), "WEBP"), ("RGBA", (18, 14))),
    "grey.png": (lambda: encoded(picture("L")), ("L", (18, 14))),
    "grey_alpha.png": (lambda: encoded(picture("LA")), ("LA", (18, 14))),
    "grey16.png": (lambda: encoded(Image.fromarray(_GREY16)), ("I;16", (18, 14))),
    "bits.png": (lambda: encoded(picture("1")), ("L", (18, 14))),
    "palette.png": (lambda: encoded(picture("P")), ("RGB", (18, 14))),
    "palette_alpha.png": (lambda: encoded(picture("P"), transparency=3), ("RGBA", (18, 14))),
    "colour_key.png": (lambda: encoded(picture(), transparency=(1, 2, 3)), ("RGBA", (18, 14))),
    "cmyk.jpg": (lambda: encoded(picture("CMYK"), "JPEG"), ("RGB", (18, 14))),
    "cmyk_profile.jpg": (lambda: encoded(picture("CMYK"), "JPEG", icc_profile=b"broken"), ("RGB", (18, 14))),
    "narrow.png": (lambda: encoded(picture(width=1)), ("RGB", (2, 14))),
    "flat.bmp": (lambda: encoded(picture(height=1), "BMP"), ("RGB", (18, 2))),
    "dot.png": (lambda: encoded(picture("L", 1, 1)), ("L", (2, 2))),
    "turned.jpg": (lambda: _turned("JPEG"), ("RGB", (14, 18))),
    "preview.jpg": (lambda: encoded(picture(), "MPO", save_all=True, append_images=[picture()]), ("RGB", (18, 14))),
    "turned_2.png": (lambda: _turned("PNG"), ("RGB", (14, 18))),
    "profile.png": (lambda: encoded(picture(), icc_profile=SRGB), ("RGB", (18, 14))),
    "animated.gif": (lambda: _animation("GIF"), ("RGB", (18, 14))),
    "animated.webp": (lambda: _animation("WEBP"), ("RGB", (18, 14))),
    "UPPER.JPEG": (lambda: encoded(picture(), "JPEG"), ("RGB", (18, 14))),
    "grey16.tif": (lambda: encoded(Image.fromarray(_GREY16), "TIFF"), ("I;16", (18, 14))),
    "big_endian.tiff": (lambda: encoded(Image.fromarray(_GREY16.astype(">u2")), "TIFF"), ("I;16", (18, 14))),
    "alpha.tif": (lambda: encoded(picture("RGBA"), "TIFF"), ("RGBA", (18, 14))),
    "bits.tif": (lambda: encoded(picture("1"), "TIFF", compression="group4"), ("L", (18, 14))),
    "packed.tif": (lambda: encoded(picture(), "TIFF", compression="tiff_lzw"), ("RGB", (18, 14))),
    "cmyk.tif": (lambda: encoded(picture("CMYK"), "TIFF"), ("RGB", (18, 14))),
    "palette.tif": (lambda: encoded(picture("P"), "TIFF"), ("RGB", (18, 14))),
    "ycbcr.tif": (lambda: encoded(picture("YCbCr"), "TIFF", compression="jpeg"), ("RGB", (18, 14))),
    "turned.tif": (lambda: _turned("TIFF"), ("RGB", (14, 18))),
    "tiled.tif": (lambda: _tiled(), ("RGB", (48, 48))),
    "pages.tif": (lambda: _animation("TIFF"), ("RGB", (18, 14))),
    "rgb16.tif": (lambda: _rgb16(), ("RGB", (18, 14))),
    "float.tif": (lambda: encoded(picture("F"), "TIFF"), "its levels are floats, whose range is not known"),
    "integers.tif": (lambda: encoded(_INTEGERS, "TIFF"), "its levels are from -1 to 70000: convert it to integers of"),
    "lab.tif": (lambda: encoded(picture("LAB"), "TIFF"), ("RGB", (18, 14))),
    "cut.tif": (lambda: encoded(picture(width=90), "TIFF")[:900], "truncated"),
    "cut_packed.tif": (lambda: encoded(picture(width=90), "TIFF", compression="tiff_lzw")[:-500], "no image"),
    "cut.jpg": (lambda: _CUT[: len(_CUT) // 2], "truncated"),
    "cut.png": (lambda: encoded(picture(width=90))[:200], "truncated"),
    "empty.png": (lambda: b"", "no image in one of the formats PNG, JPEG"),
    "text.jpg": (lambda: b"no picture at all", "no image in one of the formats PNG, JPEG"),
    "bomb.png": (lambda: _bomb(), "exceeds limit of"),
}


def _rgb16() -> bytes:
    """A TIFF of the levels (256 k, 256 k + 128, 65535) of 16 bits, which Pillow reads and does not write."""
    numbers = np.arange(63).reshape(7, 9)
    levels = np.stack([256 * numbers, 256 * numbers + 128, np.full((7, 9), 65535)], 2).astype("<u2")
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in ((256, 9), (257, 7), (258, (16, 16, 16)), (259, 1), (262, 2), (273, 0), (277, 3), (278, 7)):
        tags[tag] = value
    tags[279] = levels.nbytes
    tags.save(buffer := io.BytesIO())  # the offset 273 counts from its end
    return buffer.getvalue() + levels.tobytes()


def _tiled() -> bytes:
    """A TIFF of 24x24 pixels in tiles of 16x16."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[322] = tags[323] = 16
    return encoded(picture(width=24, height=24), "TIFF", tiffinfo=tags, compression="tiff_adobe_deflate")


def _bomb() -> bytes:
    """A small file whose header promises 1.6 gigapixels."""
    content = bytearray(encoded(picture("L")))
    content[16:24] = (40_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


def write_odd_files(folder: Path) -> None:
    folder.mkdir()
    for name, (content, _) in ODD_FILES.items():
        (folder / name).write_bytes(content())

"""Conversion of images between files, 8-bit pixels and [-1, 1]. Files and their headers are not trusted."""

import io
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from onestep.reading import check_file, read_bytes

#: Pillow supports more formats; for some it runs another program (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif")
MAX_BYTES = 1 << 28  # of one image's file
MAX_PIXELS = 1 << 26  # of one image, before it is resized; of an animation half

_MODES = {1: "L", 3: "RGB"}
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")  # Pillow refuses long ones, as profiles; none has a pixel


class DamagedImageError(ValueError):
    """An image file that cannot be decoded."""


def check_size(size: int, limit: int = MAX_BYTES) -> None:
    """Check the ``size`` of a file in bytes before it is read.

    Raises:
        DamagedImageError: if it is larger than ``limit``.
    """
    if size > limit:
        raise DamagedImageError(f"{size:,} bytes are more than {limit:,}")


def read_file(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The bytes of the regular file at ``path``.

    Raises:
        DamagedImageError: if it cannot be read or is larger than ``limit``.
    """
    try:
        return read_bytes(path, limit)
    except ValueError as error:
        raise DamagedImageError(str(error)) from error


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, quantised like in EDM's generate.py: ``x * 127.5 + 128``, clipped and truncated."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def from_uint8(pixels: Tensor) -> Tensor:
    """Pixels in [0, 255] as float32 in [-1, 1], like in EDM's training: ``x / 127.5 - 1``."""
    return pixels.float() / 127.5 - 1


def reflect(places: Sequence[int], length: int) -> np.ndarray:
    """The ``places`` on an infinite axis, each reflected into [0, ``length``) as often as it takes."""
    period = max(1, 2 * (length - 1))
    inside = np.asarray(places, np.int64) % period
    return np.minimum(inside, period - inside)


def open_image(encoded: bytes, profile: bool = False, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The image of a file's bytes, decoded as it is stored; of an animation the first.

    Args:
        encoded: of one of the ``formats`` of Pillow.
        profile: also read a PNG's colour profile.

    Raises:
        DamagedImageError: if it cannot be decoded or has more than MAX_PIXELS.
    """
    try:
        image = Image.open(io.BytesIO(_without_texts(encoded, profile)), formats=formats)
        most = MAX_PIXELS // 2 if is_animation(image) else MAX_PIXELS  # its decoder holds two images
        if image.width * image.height > most:  # from the header, before anything is decoded
            raise DamagedImageError(f"{image.width} x {image.height} pixels are more than {most:,}")
        image.load()
    except UnidentifiedImageError as error:
        raise DamagedImageError(f"no image in one of the formats {', '.join(formats)}") from error
    except Exception as error:  # Pillow's plugins raise many types of errors for damaged bytes
        raise DamagedImageError(str(error) or type(error).__name__) from error
    return image


def stored_size(path: Path) -> tuple[int, int] | None:
    """Width and height by the header of an image file, of which no more is read; None for a damaged one."""
    try:
        check_file(path)
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except Exception:  # as in open_image
        return None


def is_animation(image: Image.Image) -> bool:
    """True for several images in one file, other than a JPEG with its previews and a TIFF with its pages."""
    return bool(getattr(image, "is_animated", False)) and image.format not in ("MPO", "TIFF")


def decode_image(encoded: bytes, size: tuple[int, int] | None = None, channels: int | None = None) -> np.ndarray:
    """The uint8 pixels [C, H, W] of an image file's bytes.

    The orientation in EXIF is applied. Transparent pixels are shown on white. Of 16 bits per channel the upper 8 count.
    Of an animation it is the first image.

    Args:
        encoded: PNG, JPEG, WebP, BMP or GIF.
        size: (H, W) of the result. The largest central rectangle of these proportions is resized by Lanczos, for a
            square like in EDM's dataset_tool.py. None keeps the size.
        channels: 1 (grey) or 3 (RGB); None keeps grey and RGB.

    Raises:
        DamagedImageError: if the image cannot be decoded or has more than MAX_PIXELS.
        ValueError: for an intact image that is neither grey nor RGB, without ``channels``.
    """
    image = open_image(encoded)
    if channels is None and not image.mode.startswith(("L", "RGB", "I")):
        raise ValueError(f"it is neither grey nor RGB (Pillow's mode {image.mode}): convert by data.channels=3 or 1")
    with suppress(Exception):  # damaged EXIF has no orientation
        ImageOps.exif_transpose(image, in_place=True)
    image = _opaque(_of_8_bits(image))
    mode = image.mode if channels is None else _MODES[channels]
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and (image.height, image.width) != size:
        # Crop first: to cover ``size``, a long thin image would be enlarged to far more than MAX_PIXELS.
        image = _crop(image, size).resize(size[::-1], Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _without_texts(encoded: bytes, profile: bool) -> bytes:
    """A PNG without its texts and, unless with ``profile``, its colour profile; any other bytes unchanged."""
    if not encoded.startswith(_PNG):
        return encoded
    parts, start = [_PNG], len(_PNG)
    while start + 8 <= len(encoded):
        length, kind = struct.unpack(">I4s", encoded[start : start + 8])
        end = start + length + 12  # with length, kind and checksum
        if kind not in _TEXTS and (profile or kind != b"iCCP"):
            parts.append(encoded[start:end])
        start = end
    return b"".join(parts)


def _of_8_bits(image: Image.Image) -> Image.Image:
    """The upper 8 of a grey image's 16 bits, as Pillow itself decodes RGB of 16 bits."""
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image)
    grey = Image.fromarray((levels >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(levels == transparent, np.uint8(0), np.uint8(255))))
    return grey


def _opaque(image: Image.Image) -> Image.Image:
    """An image on a white background, RGB or grey as before."""
    if not image.has_transparency_data:
        return image
    mode = "L" if image.mode.startswith("L") else "RGB"
    image = image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
    white = Image.new(mode, image.size, "white")
    white.paste(image.convert(mode), mask=image.getchannel("A"))
    return white


def _crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The largest central rectangle with the proportions of ``size`` (H, W)."""
    scale = min(image.height / size[0], image.width / size[1])
    height, width = (max(1, round(side * scale)) for side in size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))

"""Conversion of images between files, 8-bit pixels and [-1, 1]. Files and their headers are not trusted."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

#: Pillow supports more formats; for some it runs another program (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_BYTES = 1 << 28  # of one image's file
MAX_PIXELS = 1 << 26  # of one image, before it is resized

_MODES = {1: "L", 3: "RGB"}
_DEEP_MODES = ("I", "F")  # more than 8 bits per channel


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
    """The bytes of the file at ``path``.

    Raises:
        DamagedImageError: if it cannot be read or is larger than ``limit``.
    """
    try:
        check_size(path.stat().st_size, limit)
        return path.read_bytes()
    except OSError as error:
        raise DamagedImageError(str(error)) from error


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, quantised like in EDM's generate.py: ``x * 127.5 + 128``, clipped and truncated."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def from_uint8(pixels: Tensor) -> Tensor:
    """Pixels in [0, 255] as float32 in [-1, 1], like in EDM's training: ``x / 127.5 - 1``."""
    return pixels.float() / 127.5 - 1


def decode_image(encoded: bytes, size: tuple[int, int] | None = None, channels: int | None = None) -> np.ndarray:
    """The uint8 pixels [C, H, W] of an image file's bytes.

    Args:
        encoded: PNG, JPEG, WebP or BMP.
        size: (H, W) of the result. The largest central rectangle of these proportions is resized by Lanczos, for a
            square like in EDM's dataset_tool.py. None keeps the size.
        channels: 1 (grey) or 3 (RGB); None keeps grey and RGB.

    Raises:
        DamagedImageError: if the image cannot be decoded or has more than MAX_PIXELS.
        ValueError: for an intact image with more than 8 bits per channel, or of another mode without ``channels``.
    """
    image: Image.Image
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:  # from the header, before anything is decoded
            raise DamagedImageError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
        image.load()
    except Exception as error:  # Pillow's plugins raise many types of errors for damaged bytes
        raise DamagedImageError(str(error) or type(error).__name__) from error
    if image.mode.startswith(_DEEP_MODES):
        raise ValueError(f"it has more than 8 bits per channel (Pillow's mode {image.mode}): convert it to 8 bits")
    if channels is None and image.mode not in _MODES.values():
        raise ValueError(f"it is neither grey nor RGB (Pillow's mode {image.mode}): convert by channels=3 or 1")
    if channels is not None:
        image = image.convert(_MODES[channels])
    if size is not None and (image.height, image.width) != size:
        # Crop first: to cover ``size``, a long thin image would be enlarged to far more than MAX_PIXELS.
        image = _crop(image, size).resize(size[::-1], Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The largest central rectangle with the proportions of ``size`` (H, W)."""
    scale = min(image.height / size[0], image.width / size[1])
    height, width = (max(1, round(side * scale)) for side in size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))

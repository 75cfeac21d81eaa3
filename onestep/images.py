"""Images between files, 8-bit pixels and [-1, 1]; a file is not trusted in what it says of itself."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

#: Pillow reads far more, some of it by running another program (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_BYTES = 1 << 28  # of one image's file
MAX_PIXELS = 1 << 26  # of one image, before it is resized

_MODES = {1: "L", 3: "RGB"}
_DEEP_MODES = ("I", "F")  # more than 8 bits a channel


class DamagedImageError(ValueError):
    """An image that cannot be read, by name."""


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, quantised as EDM's generate.py does: ``x * 127.5 + 128``, clipped and truncated."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def from_uint8(pixels: Tensor) -> Tensor:
    """Pixels in [0, 255] as float32 in [-1, 1], as EDM's training does: ``x / 127.5 - 1``."""
    return pixels.float() / 127.5 - 1


def decode_image(encoded: bytes, size: tuple[int, int] | None = None, channels: int | None = None) -> np.ndarray:
    """The uint8 pixels [C, H, W] of an image file's bytes.

    Args:
        encoded: PNG, JPEG, WebP or BMP.
        size: (H, W) to crop and resize to: the largest central rectangle of these proportions, by Lanczos (for a square
            as EDM's dataset_tool.py); None leaves the size as it is.
        channels: converts to 1 (grey) or 3 (RGB); None leaves grey grey and RGB RGB.

    Raises:
        DamagedImageError: if it cannot be decoded or is larger than MAX_PIXELS.
        ValueError: for a sound image of a kind that needs ``channels``, or that 8 bits cannot hold.
    """
    image: Image.Image
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:  # known from the header: nothing is decoded yet
            raise DamagedImageError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
        image.load()
    except Exception as error:  # Pillow's plugins raise almost anything at broken bytes
        raise DamagedImageError(str(error) or type(error).__name__) from error
    if image.mode.startswith(_DEEP_MODES):
        raise ValueError(f"it has more than 8 bits a channel (Pillow's mode {image.mode}): convert it first")
    if channels is None and image.mode not in _MODES.values():
        raise ValueError(f"it is neither grey nor RGB (Pillow's mode {image.mode}): convert by channels=3 or 1")
    if channels is not None:
        image = image.convert(_MODES[channels])
    if size is not None and (image.height, image.width) != size:
        # Cropped first: to cover ``size``, a long thin image would have to be enlarged to far more than MAX_PIXELS.
        image = _crop(image, size).resize(size[::-1], Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The largest central rectangle with the proportions of ``size`` (H, W)."""
    scale = min(image.height / size[0], image.width / size[1])
    height, width = (max(1, round(side * scale)) for side in size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))

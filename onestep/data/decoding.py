"""From the bytes of an image file to pixels, without trust in what the file says of itself."""

import io

import numpy as np
from PIL import Image

#: Pillow reads far more, some of it by running another program (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_BYTES = 1 << 28  # of one image's file
MAX_PIXELS = 1 << 26  # of one image, before it is resized

_MODES = {1: "L", 3: "RGB"}
_DEEP_MODES = ("I", "F")  # more than 8 bits a channel


class DamagedImageError(ValueError):
    """An image that cannot be read, by name."""


def decode_image(encoded: bytes, resolution: int | None = None, channels: int | None = None) -> np.ndarray:
    """The uint8 pixels [C, H, W] of an image file's bytes.

    Args:
        encoded: PNG, JPEG, WebP or BMP.
        resolution: crops the central square and resizes it to this side (Lanczos, as EDM's dataset_tool.py); None
            leaves the size as it is.
        channels: converts to 1 (grey) or 3 (RGB); None leaves grey grey and RGB RGB.

    Raises:
        DamagedImageError: if it cannot be decoded or is larger than MAX_PIXELS.
        ValueError: for a whole image of a kind that needs ``channels``, or that 8 bits cannot hold.
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
    if resolution is not None and image.size != (resolution, resolution):
        image = _crop_square(image).resize((resolution, resolution), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _crop_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))

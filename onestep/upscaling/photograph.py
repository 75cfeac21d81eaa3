"""Photographs as files: pixels, transparency and metadata, read within limits and written atomically."""

import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps

from onestep.files import atomic_file
from onestep.images import is_animation, open_image, read_file

FileFormat = Literal["png", "jpeg", "webp"]
#: The suffixes of the formats; the first is that of new files.
SUFFIXES: dict[FileFormat, tuple[str, ...]] = {"png": (".png",), "jpeg": (".jpg", ".jpeg"), "webp": (".webp",)}
#: The longest side that a format can store.
_LONGEST = {"png": 2**31 - 1, "jpeg": 65_535, "webp": 16_383}
_MAX_PIXELS = 1 << 30  # of a result, a few gigabytes
_QUALITY = 95  # of JPEG and WebP: losses below what is seen
_MAX_EXIF = 65_000  # bytes in a JPEG
#: EXIF's ProcessingSoftware, which says how a result was made.
SOFTWARE = 0x000B
_ORIENTATION, _EXIF_IFD, _WIDTH, _HEIGHT = 0x0112, 0x8769, 0xA002, 0xA003


def format_of(path: Path) -> FileFormat | None:
    """The format that a file's suffix names; None for another one."""
    return next((format for format, suffixes in SUFFIXES.items() if path.suffix.lower() in suffixes), None)


@dataclass
class Photograph:
    """A photograph with the orientation of its EXIF applied.

    Attributes:
        levels: pixels [H, W, 1 or 3], uint8, or uint16 for grey ones of 16 bits.
        alpha: opacity [H, W, 1], uint8; None for an opaque one.
        profile: its ICC profile; None for none.
        exif: its EXIF without orientation.
        note: what of the file is left out, in words; empty for nothing.
    """

    levels: np.ndarray
    alpha: np.ndarray | None
    profile: bytes | None
    exif: Image.Exif
    note: str = ""


def read_photograph(path: Path) -> Photograph:
    """The photograph in a file of one of :data:`onestep.images.FORMATS`.

    Palettes and CMYK become RGB, CMYK by its own profile. Of 16 bits per channel those of grey are kept, of RGB the
    upper 8. Of an animation it is the first image.

    Raises:
        DamagedImageError: if it cannot be decoded, or has more pixels than :data:`onestep.images.MAX_PIXELS`.
    """
    image = open_image(read_file(path), profile=True)
    note = "the first image of an animation" if is_animation(image) else ""
    with suppress(Exception):  # damaged EXIF has no orientation
        ImageOps.exif_transpose(image, in_place=True)
    exif = Image.Exif()
    with suppress(Exception):
        exif = image.getexif()
        exif.pop(_ORIENTATION, None)
    levels, alpha, profile = _pixels(image)
    return Photograph(levels, alpha, profile, exif, note)


def write_photograph(path: Path, photograph: Photograph) -> None:
    """Write a photograph atomically, with its metadata, in the format of the path's suffix.

    Raises:
        ValueError: see :func:`check_format`, or for metadata that the format cannot store.
        OSError: if it cannot be written.
    """
    format = format_of(path) or "png"
    image = _image(photograph.levels if format == "png" else _eight_bits(photograph.levels))
    if photograph.alpha is not None:
        image.putalpha(_image(photograph.alpha))
    options: dict[str, Any] = {"quality": _QUALITY} if format != "png" else {}
    if format == "jpeg":
        options["subsampling"] = 0
    if exif := _exif_bytes(photograph.exif, image.size, None if format == "png" else _MAX_EXIF):
        options["exif"] = exif
    options |= {"icc_profile": photograph.profile} if photograph.profile else {}
    with atomic_file(path, durable=True) as temporary:
        image.save(temporary, format.upper(), **options)


def _exif_bytes(exif: Image.Exif, size: tuple[int, int], limit: int | None) -> bytes:
    """The bytes of an EXIF of a picture of another ``size``; of one that is damaged or too long its software alone."""
    with suppress(Exception):
        details = exif.get_ifd(_EXIF_IFD)
        details |= {tag: side for tag, side in zip((_WIDTH, _HEIGHT), size, strict=True) if tag in details}
        content = exif.tobytes()
        if limit is None or len(content) <= limit:
            return content if len(exif) else b""
    own = Image.Exif()
    own[SOFTWARE] = exif.get(SOFTWARE, "")
    return own.tobytes()


def check_format(photograph: Photograph, height: int, width: int, path: Path) -> None:
    """Check, before it is computed, that the file at ``path`` can store a photograph at another size.

    Raises:
        ValueError: for transparency in a JPEG, or too large a picture.
    """
    format = format_of(path) or "png"
    if photograph.alpha is not None and format == "jpeg":
        raise ValueError("it has transparency, which JPEG cannot store: use format=png")
    if max(height, width) > _LONGEST[format]:
        raise ValueError(f"{width} x {height} pixels are more than {format} can store, {_LONGEST[format]:,} a side")
    if height * width > _MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {_MAX_PIXELS:,}: use a smaller factor")


def _pixels(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None, bytes | None]:
    """Levels, opacity and profile."""
    profile: bytes | None = image.info.get("icc_profile") or None
    if image.mode.startswith("I"):
        levels = np.clip(np.asarray(image), 0, 2**16 - 1).astype(np.uint16)[..., None]
        transparent = image.info.get("transparency")
        if transparent is None:
            return levels, None, profile
        return _eight_bits(levels), np.where(levels == transparent, 0, 255).astype(np.uint8), profile
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode == "CMYK":
        image, profile = _from_cmyk(image, profile), None
    if not image.has_transparency_data:
        levels = np.asarray(image.convert("L" if grey else "RGB"))
        return levels[..., None] if grey else levels, None, profile
    rgba = np.asarray(image if image.mode == "RGBA" else image.convert("RGBA"))
    return rgba[..., : 1 if grey else 3], rgba[..., 3:], profile


def _from_cmyk(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB by the ``profile``, or, without one that can be read, by Pillow's formula."""
    if profile is not None:
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")


def _eight_bits(levels: np.ndarray) -> np.ndarray:
    return levels if levels.dtype == np.uint8 else (levels >> 8).astype(np.uint8)


def _image(levels: np.ndarray) -> Image.Image:
    """Pillow's image of levels [H, W, C]."""
    return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)

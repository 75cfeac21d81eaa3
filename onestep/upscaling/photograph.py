"""Photographs as files: pixels, transparency and metadata, read within limits and written atomically."""

import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps

from onestep import images
from onestep.files import atomic_file
from onestep.images import is_animation, open_image, read_file

#: What is read: with TIFF, which no data set is read from.
FORMATS = (*images.FORMATS, "TIFF")
INPUT_SUFFIXES = (*images.SUFFIXES, ".tif", ".tiff")
FileFormat = Literal["png", "jpeg", "webp", "tiff"]
#: The suffixes of the formats; the first is that of new files.
SUFFIXES: dict[FileFormat, tuple[str, ...]] = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg"),
    "webp": (".webp",),
    "tiff": (".tif", ".tiff"),
}
#: The longest side that a format can store.
_LONGEST = {"png": 2**31 - 1, "jpeg": 65_535, "webp": 16_383, "tiff": 2**31 - 1}
_MAX_TIFF = 2**32 - 2**24  # bytes of levels in a file whose offsets have 32 bits
_MAX_PIXELS = 1 << 30  # of a result, a few gigabytes
_QUALITY = 95  # of JPEG and WebP: losses below what is seen
_MAX_EXIF = 65_000  # bytes in a JPEG
#: EXIF's ProcessingSoftware, which says how a result was made.
SOFTWARE = 0x000B
#: Tags of a TIFF that say how its pixels are stored, with profiles and other programs' blocks; EXIF shares its tags.
_STRUCTURE = {
    *range(254, 267), 273, *range(277, 282), 284, *range(288, 294), 301, *range(317, 326), 330, *range(332, 348),
    *range(512, 522), *range(529, 533), 700, 33723, 34377, 34675, 37724,
}  # fmt: skip
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
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
    """The photograph in a file of one of :data:`FORMATS`.

    Palettes and CMYK become RGB, CMYK by its own profile. Of 16 bits per channel those of grey are kept, of RGB the
    upper 8, as Pillow decodes them. Of an animation or several pages it is the first image.

    Raises:
        DamagedImageError: if it cannot be decoded, or has more pixels than :data:`onestep.images.MAX_PIXELS`.
        ValueError: for levels that are no integers of 1 to 16 bits, or colours that Pillow does not convert.
    """
    image = open_image(read_file(path), profile=True, formats=FORMATS)
    note = "the first image of an animation" if is_animation(image) else ""
    with suppress(Exception):  # damaged pages after the first
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            note = "the first of several images"
    with suppress(Exception):  # damaged EXIF has no orientation
        ImageOps.exif_transpose(image, in_place=True)
    exif = Image.Exif()
    with suppress(Exception):
        exif = image.getexif()
        for tag in (_STRUCTURE | {_ORIENTATION}) & {*exif}:
            del exif[tag]
    levels, alpha, profile = _pixels(image)
    return Photograph(levels, alpha, profile, exif, note)


def write_photograph(path: Path, photograph: Photograph) -> None:
    """Write a photograph atomically, with its metadata, in the format of the path's suffix.

    Raises:
        ValueError: see :func:`check_format`, or for metadata that the format cannot store.
        OSError: if it cannot be written.
    """
    format = format_of(path) or "png"
    lossless = format in ("png", "tiff")
    image = _image(photograph.levels if lossless else _eight_bits(photograph.levels))
    if photograph.alpha is not None:
        image.putalpha(_image(photograph.alpha))
    options: dict[str, Any] = {} if lossless else {"quality": _QUALITY}
    if format == "jpeg":
        options["subsampling"] = 0
    if exif := _exif_bytes(photograph.exif, image.size, format):
        options["exif"] = exif
    options |= {"icc_profile": photograph.profile} if photograph.profile else {}
    with atomic_file(path, durable=True) as temporary:
        image.save(temporary, format.upper(), **options)


def _exif_bytes(exif: Image.Exif, size: tuple[int, int], format: FileFormat) -> bytes:
    """The bytes of an EXIF of a picture of another ``size``; of one that is damaged or too long its software alone."""
    limit = _MAX_EXIF if format in ("jpeg", "webp") else None
    with suppress(Exception):
        details = exif.get_ifd(_EXIF_IFD)
        details |= {tag: side for tag, side in zip((_WIDTH, _HEIGHT), size, strict=True) if tag in details}
        content = exif.tobytes()
        if format == "tiff":  # its writer reads them
            Image.new("L", (1, 1)).save(io.BytesIO(), "TIFF", exif=content)
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
    stored = photograph.levels[0, 0].nbytes + (photograph.alpha is not None)  # of a pixel, in bytes
    if format == "tiff" and height * width * stored > _MAX_TIFF:
        raise ValueError(f"{width} x {height} pixels are more than a TIFF of 4 GiB can store: use format=png")
    if height * width > _MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {_MAX_PIXELS:,}: use a smaller factor")


def _pixels(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None, bytes | None]:
    """Levels, opacity and profile."""
    profile: bytes | None = image.info.get("icc_profile") or None
    if image.mode == "F":
        raise ValueError("its levels are floats, whose range is not known: convert it to integers of 16 bits")
    if image.mode.startswith("I"):
        stored = np.asarray(image)
        if stored.min() < 0 or stored.max() >= 2**16:
            raise ValueError(
                f"its levels are from {stored.min()} to {stored.max()}: convert it to integers of 16 bits without sign"
            )
        levels = stored.astype(np.uint16)[..., None]
        if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # type: ignore[attr-defined]
            levels = 2**16 - 1 - levels
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

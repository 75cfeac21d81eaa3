"""Conversion of images between files, 8-bit pixels and [-1, 1]."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from onestep.images import DamagedImageError, decode_image, from_uint8, to_uint8
from tests.helpers.pictures import encode, huge_png


@pytest.mark.parametrize(
    "value, pixel",
    [
        (-1.0, 0),  # 0.5, truncated
        (1.0, 255),  # 255.5, clipped
        (0.0, 128),
        (-0.002, 127),  # 127.745
        (0.5, 191),  # 191.75
        (-7.0, 0),
        (7.0, 255),
    ],
)
def test_to_uint8(value: float, pixel: int) -> None:
    result = to_uint8(torch.tensor([value]))
    assert result.dtype == torch.uint8 and result.item() == pixel


def test_every_grey_level_comes_back() -> None:
    levels = torch.arange(256)
    assert torch.equal(to_uint8((levels.double() - 127.5) / 127.5), levels.to(torch.uint8))


def test_pixels_as_numbers() -> None:
    assert from_uint8(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([-1, -0.6, 1], abs=1e-7)
    assert torch.equal(to_uint8(from_uint8(torch.arange(256))), torch.arange(256).to(torch.uint8))


def test_decoding() -> None:
    """An image 6 wide and 4 high, whose central square has columns of 10, 20, 30 and 40."""
    columns = np.tile(np.array([0, 10, 20, 30, 40, 50], np.uint8), (4, 1))
    grey = Image.fromarray(columns)
    assert np.array_equal(decode_image(encode(grey)), columns[None])
    assert np.array_equal(decode_image(encode(grey), size=(4, 4)), columns[None, :, 1:5])
    assert np.array_equal(decode_image(encode(grey), channels=3), np.stack([columns] * 3))
    assert np.array_equal(decode_image(encode(grey), size=(4, 2)), columns[None, :, 2:4])
    small = decode_image(encode(grey), size=(2, 2))
    assert small.shape == (1, 2, 2) and abs(small[0].astype(int) - [15, 35]).max() <= 1
    rgb = np.random.default_rng(0).integers(256, size=(5, 4, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encode(Image.fromarray(rgb), "BMP")), rgb.transpose(2, 0, 1))
    with pytest.raises(ValueError, match=r"neither grey nor RGB .*channels=3"):
        decode_image(encode(Image.fromarray(rgb).convert("P")))
    for kind in ("EPS", "PPM"):  # for an EPS, Pillow runs Ghostscript
        with pytest.raises(DamagedImageError):
            decode_image(encode(grey, kind))


def test_transparency_is_shown_on_white() -> None:
    """The left half is opaque, the right half transparent over red (grey: over black)."""
    alpha = np.array([[255, 255, 0, 0]] * 4, np.uint8)
    blue = np.stack([np.where(alpha, value, hidden) for value, hidden in ((0, 255), (0, 0), (200, 0))], 2)
    rgba = Image.fromarray(np.dstack([blue, alpha]).astype(np.uint8))
    grey = Image.merge("LA", [Image.fromarray(np.where(alpha, 70, 0).astype(np.uint8)), Image.fromarray(alpha)])
    keyed = io.BytesIO()
    Image.fromarray(blue.astype(np.uint8)).save(keyed, "PNG", transparency=(255, 0, 0))
    palette = io.BytesIO()
    indexed = rgba.convert("RGB").quantize(2, dither=Image.Dither.NONE)
    indexed.save(palette, "PNG", transparency=indexed.getpixel((3, 0)))
    webp = encode(rgba.resize((64, 64), Image.Resampling.NEAREST), "WEBP")
    for name, encoded in {"RGBA": encode(rgba), "key": keyed.getvalue(), "palette": palette.getvalue()}.items():
        assert decode_image(encoded, channels=3)[:, 0, [0, 3]].tolist() == [[0, 255], [0, 255], [200, 255]], name
    assert decode_image(encode(rgba)).shape == (3, 4, 4)
    assert decode_image(encode(grey), channels=3)[:, 0, [0, 3]].tolist() == [[70, 255]] * 3
    assert decode_image(encode(grey)).tolist() == [[[70, 70, 255, 255]] * 4]
    assert (decode_image(webp, channels=1)[0, :, 40:] == 255).all()


def test_16_bits_count_by_their_upper_8() -> None:
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    expected = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for channels in (None, 1, 3):
        decoded = decode_image(encode(Image.fromarray(ramp)), channels=channels)
        assert np.array_equal(decoded, np.repeat(expected, channels or 1, axis=0))


def test_orientation_of_cameras() -> None:
    """The camera's first row is the image's right column (6), its bottom row (3), its mirrored first row (2)."""
    picture = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    for orientation, expected in (
        (6, [[3, 0], [4, 1], [5, 2]]),
        (3, [[5, 4, 3], [2, 1, 0]]),
        (2, [[2, 1, 0], [5, 4, 3]]),
        (77, [[0, 1, 2], [3, 4, 5]]),
    ):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.save(stream := io.BytesIO(), "PNG", exif=exif)
        assert decode_image(stream.getvalue())[0].tolist() == expected


@pytest.mark.parametrize("compressed", [False, True])
def test_long_texts_and_profiles_are_no_damage(compressed: bool) -> None:
    """Longer than what Pillow reads by itself: 1 MiB for a text, 64 MiB in all."""
    texts = PngInfo()
    for number in range(70):
        texts.add_text(f"Comment {number}", "x" * 1_000_000, zip=compressed)
    Image.new("L", (4, 4), 99).save(stream := io.BytesIO(), "PNG", pnginfo=texts, icc_profile=bytes(2_000_000))
    assert (decode_image(stream.getvalue()) == 99).all()


def test_rectangles_of_other_proportions() -> None:
    """The largest central rectangle of an image 9 wide and 4 high: 9 x 3 for 3:1, 2 x 4 for 1:2."""
    picture = np.arange(36, dtype=np.uint8).reshape(4, 9)
    assert np.array_equal(decode_image(encode(Image.fromarray(picture)), size=(4, 2)), picture[None, :, 3:5])
    assert np.array_equal(decode_image(encode(Image.fromarray(picture)), size=(3, 9)), picture[None, :3])
    wide = np.zeros((60, 90), np.uint8)
    wide[:, 30:60] = 200
    assert (decode_image(encode(Image.fromarray(wide)), size=(20, 10)) == 200).all()
    tall = np.random.default_rng(0).integers(256, size=(37, 20, 3), dtype=np.uint8)
    assert decode_image(encode(Image.fromarray(tall)), size=(8, 16)).shape == (3, 8, 16)


def test_a_thin_image_is_not_enlarged_on_the_way() -> None:
    """Resized to cover the square, the image would have 4,000,000 x 2,000 pixels."""
    assert decode_image(encode(Image.new("L", (4_000_000, 2))), size=(2000, 2000)).shape == (1, 2000, 2000)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_header_of_too_many_pixels() -> None:
    with pytest.raises(DamagedImageError, match="10000 x 10000 pixels are more than 67,108,864"):
        decode_image(huge_png(10_000), size=(16, 16), channels=3)

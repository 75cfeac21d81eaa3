"""Conversion of images between files, 8-bit pixels and [-1, 1]."""

import numpy as np
import pytest
import torch
from PIL import Image

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
    with pytest.raises(ValueError, match="more than 8 bits per channel"):
        decode_image(encode(Image.fromarray(columns.astype(np.uint16))), channels=1)
    for kind in ("EPS", "GIF"):  # for an EPS, Pillow runs Ghostscript
        with pytest.raises(DamagedImageError):
            decode_image(encode(grey, kind))


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

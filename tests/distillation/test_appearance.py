"""Saturation, contrast and sharpness of known pictures."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from onestep.distillation.appearance import appearance_of


def test_a_chequerboard() -> None:
    """Of -a and a: the deviation is a, and each pixel's Laplacian is -8 times it."""
    board = 0.25 * (1 - 2 * (torch.arange(6)[:, None] + torch.arange(6)).remainder(2)).double()
    found = appearance_of(board.expand(2, 1, 6, 6))
    assert found.keys() == {"contrast", "sharpness"}
    assert {name: float(value) for name, value in found.items()} == pytest.approx({"contrast": 0.25, "sharpness": 4.0})


def test_colours_are_those_of_pillow() -> None:
    """Pillow's YCbCr is BT.601 of 0 to 255, rounded, so that two of our units are 255 of its."""
    pixels = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    y, cb, cr = torch.tensor(np.array(Image.fromarray(pixels.numpy()).convert("YCbCr"))).double().unbind(-1)
    found = appearance_of(pixels.permute(2, 0, 1)[None].double() / 127.5 - 1)
    assert float(found["saturation"]) == pytest.approx(float(torch.hypot(cb - 128, cr - 128).mean()) / 127.5, rel=0.01)
    assert float(found["contrast"]) == pytest.approx(float(y.std(correction=0)) / 127.5, rel=0.01)


def test_grey_in_three_channels_has_no_chroma() -> None:
    grey = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    assert float(appearance_of(grey)["saturation"]) == pytest.approx(0, abs=1e-12)
    assert math.isfinite(float(appearance_of(grey)["contrast"]))

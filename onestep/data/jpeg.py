"""The loss of JPEG's baseline coding, without its bytes: the pixels do not depend on a library and its version."""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE = 8  # of a block

# ITU-T T.81, tables K.1 and K.2, at a quality of 50.
_LUMINANCE = """
16 11 10 16  24  40  51  61
12 12 14 19  26  58  60  55
14 13 16 24  40  57  69  56
14 17 22 29  51  87  80  62
18 22 37 56  68 109 103  77
24 35 55 64  81 104 113  92
49 64 78 87 103 121 120 101
72 92 95 98 112 100 103  99
"""
_CHROMINANCE = """
17 18 24 47 99 99 99 99
18 21 26 66 99 99 99 99
24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
"""


def jpeg(levels: Tensor, quality: int) -> Tensor:
    """Images as they are after coding and decoding, as libjpeg does it.

    The colours are those of JFIF, with half as many samples of the chrominance in both directions (4:2:0), which are
    averaged before and interpolated linearly after.

    Args:
        levels: whole grey levels from 0 to 255 [B, 1 or 3, H, W], float64.
        quality: from 1 to 100, which scales the quantisation tables.
    """
    height, width = levels.shape[2:]
    if levels.shape[1] == 1:
        return _coded(levels, table(_LUMINANCE, quality))
    luma, chroma = rounded(_mixed(levels, _TO_YCBCR) + _OFFSET).split([1, 2], 1)
    luma = _coded(luma, table(_LUMINANCE, quality))
    means = F.avg_pool2d(_extended(chroma, 2), 2)
    half = _coded((means + _BIAS[torch.arange(means.shape[3]) % 2]).floor(), table(_CHROMINANCE, quality))
    chroma = rounded(F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False))[..., :height, :width]
    decoded = _mixed(torch.cat([luma, chroma], 1) - _OFFSET, _TO_YCBCR.inverse())
    return rounded(decoded).clamp(0, 255)


def rounded(values: Tensor) -> Tensor:
    """The nearest whole numbers; halves upwards, also where an error of the arithmetic has put them below.

    The coefficients of flat areas often are halves, and the result is not to depend on the order of a sum.
    """
    return (values + (0.5 + 1e-7)).floor()


@cache
def table(text: str, quality: int) -> Tensor:
    """The quantisation table of ``text`` [8, 8] at a ``quality``, as libjpeg scales it."""
    values = torch.tensor([int(word) for word in text.split()]).reshape(_SIDE, _SIDE)
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((values * percent + 50) // 100).clamp(1, 255).double()


def _coded(levels: Tensor, quantum: Tensor) -> Tensor:
    """``levels`` [B, C, H, W] after the quantisation of the cosine transform of each block."""
    height, width = levels.shape[2:]
    full = _extended(levels, _SIDE) - 128
    blocks = full.unflatten(3, (-1, _SIDE)).unflatten(2, (-1, _SIDE)).transpose(3, 4)
    basis = _cosines()
    coefficients = rounded(basis @ blocks @ basis.T / quantum) * quantum
    decoded = (basis.T @ coefficients @ basis).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return rounded(decoded[..., :height, :width] + 128).clamp(0, 255)


def _extended(images: Tensor, multiple: int) -> Tensor:
    """``images`` with their last row and column repeated up to a multiple in both directions."""
    height, width = images.shape[2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")


@cache
def _cosines() -> Tensor:
    """The orthonormal cosine transform [8 frequencies, 8 places]."""
    place = (torch.arange(_SIDE, dtype=torch.float64) + 0.5) * math.pi / _SIDE
    basis = (torch.arange(_SIDE, dtype=torch.float64)[:, None] * place).cos() / 2
    basis[0] /= math.sqrt(2)
    return basis


def _mixed(images: Tensor, matrix: Tensor) -> Tensor:
    """The channels of ``images`` [B, 3, H, W] mixed by ``matrix`` [3, 3]."""
    return torch.einsum("kc,bchw->bkhw", matrix, images)


_RED, _, _BLUE = torch.eye(3, dtype=torch.float64)
#: Of R, G and B in the luminance.
LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
#: From R, G, B to JFIF's Y, Cb, Cr, to which the offset is added.
_TO_YCBCR = torch.stack([LUMA, (_BLUE - LUMA) / 1.772, (_RED - LUMA) / 1.402])
_OFFSET = torch.tensor([0.0, 128.0, 128.0], dtype=torch.float64).reshape(3, 1, 1)
#: What libjpeg adds to the means of four samples in turn along a row, before it cuts them to whole numbers.
_BIAS = torch.tensor([0.25, 0.5], dtype=torch.float64)

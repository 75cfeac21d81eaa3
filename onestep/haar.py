"""The orthonormal Haar transform of images, and its inverse."""

import torch
import torch.nn.functional as F
from torch import Tensor

#: Detail bands of a level: horizontal, vertical and diagonal.
DETAILS = 3


def haar(x: Tensor, levels: int) -> tuple[Tensor, list[Tensor]]:
    """The transform of images [B, C, H, W] whose sides ``2**levels`` divides.

    Returns:
        The low band [B, C, H / 2**levels, W / 2**levels], and the details [B, 3 C, h, w] of each level, finest first.
    """
    details: list[Tensor] = []
    for _ in range(levels):
        blocks = F.pixel_unshuffle(x, 2).unflatten(1, (x.shape[1], 4))  # [B, C, 4, h, w]
        bands = torch.einsum("kj,bcjhw->bckhw", _matrix(x), blocks)
        x = bands[:, :, 0]
        details.append(bands[:, :, -DETAILS:].flatten(1, 2))
    return x, details


def inverse_haar(low: Tensor, details: Tensor) -> Tensor:
    """The images [B, C, 2 h, 2 w] of a low band [B, C, h, w] and the details [B, 3 C, h, w] of one level."""
    bands = torch.cat([low[:, :, None], details.unflatten(1, (low.shape[1], DETAILS))], 2)
    blocks = torch.einsum("kj,bckhw->bcjhw", _matrix(low), bands)
    return F.pixel_shuffle(blocks.flatten(1, 2), 2)


def _matrix(x: Tensor) -> Tensor:
    """The bands of the four pixels of a block, an orthogonal matrix."""
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=x.dtype, device=x.device)
    return signs / 2

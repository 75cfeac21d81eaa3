"""The visual hull of images: the most matter that none of them shows to be absent."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.models.scene.render import rotations, voxel_centres


def visual_hull(opacities: Tensor, views: Sequence[Sequence[float]], size: int) -> Tensor:
    """The part [T, N, N, N] of each voxel that is filled: the least opacity of the pixels in which it is seen.

    For silhouettes it is the visual hull, and no solid shows more of them: nothing wrong lights up, and what stays dark
    in one view must be dark in the others.

    Args:
        opacities: images [T, V, H, W] in [0, 1], one for each view.
        views: their cameras (azimuth, elevation, roll) in degrees, orthographic and without a shift.
        size: voxels N along a side.
    """
    rotation = rotations(torch.tensor(views, dtype=opacities.dtype))
    places = voxel_centres(size).to(opacities).flatten(0, 2) @ rotation[:, :, :2]  # [V, N^3, 2], to the right and down
    images = opacities.transpose(0, 1)  # views as the batch, sets of images as channels
    filled = F.grid_sample(images, places[:, None], mode="nearest", padding_mode="zeros", align_corners=False)
    return filled[:, :, 0].amin(0).unflatten(1, (size, size, size))

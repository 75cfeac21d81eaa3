"""Non-leaking augmentation of training images (Karras et al. 2022, arXiv 2206.00364, appendix F.2 and table 6)."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt, Le
from torch import Tensor

from onestep.precision import double
from onestep.ranges import Fraction, checked
from onestep.seeding import BatchRandom

PARAMETERS = ("x_flip", "y_flip", "scale", "rotation", "anisotropy_angle", "anisotropy", "x_shift", "y_shift")

Factor = Annotated[float, Gt(0), Le(100)]


@checked
class EDMAugmentation:
    """Random flips, scaling, rotation, stretching and translation, described by nine labels, an input of the network.

    A network that is trained with the labels and used with zeros does not generate the transforms. The horizontal flip
    has probability 1/2, each other transform ``probability``. The interpolation is bicubic, unlike the paper's at twice
    the resolution with wavelet filters; both reflect the image at its borders.

    Args:
        probability: A_prob, in [0, 1].
        scale: A_scale, the factor of the scaling at one standard deviation.
        anisotropy: A_aniso, the factor of the stretching along one axis, and of the shrinking along the other.
        translation: A_trans, the shift at one standard deviation as a fraction of the image's side.

    Raises:
        ValueError: for a number out of its range.
    """

    label_dim = 9

    def __init__(self, probability: Fraction, scale: Factor, anisotropy: Factor, translation: Factor) -> None:
        self.probability, self.scale, self.anisotropy, self.translation = probability, scale, anisotropy, translation

    def __call__(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        """Augmented ``images`` [B, C, H, W] in [-1, 1] and their labels [B, 9]; the labels describe the transform."""
        parameters = self.parameters(random).to(images)
        return self.transform(images, parameters), to_labels(parameters)

    def parameters(self, random: BatchRandom) -> Tensor:
        """The ``PARAMETERS`` [B, 8], a_0 to a_7 of table 6; 0 for no transform."""
        uniform, normal = random.uniform((9,)), random.normal((4,))
        flips = (uniform[:, :2] < 0.5).float()
        angles = (2 * uniform[:, 2:4] - 1) * math.pi
        applied = (uniform[:, 4:9] < self.probability).float()  # y-flip, scale, rotation, anisotropy, translation
        y_flip, scale, rotation, anisotropy, translation = applied.unbind(1)
        return torch.stack(
            [
                flips[:, 0],
                flips[:, 1] * y_flip,
                normal[:, 0] * scale,
                angles[:, 0] * rotation,
                angles[:, 1] * anisotropy,
                normal[:, 1] * anisotropy,
                normal[:, 2] * translation,
                normal[:, 3] * translation,
            ],
            dim=1,
        )

    def transform(self, images: Tensor, parameters: Tensor) -> Tensor:
        """``images`` [B, C, H, W] under ``parameters`` [B, 8], in table 6's order; 0 leaves an image unchanged."""
        x_flip, y_flip = (column[:, None, None, None] != 0 for column in parameters[:, :2].unbind(1))
        images = torch.where(x_flip, images.flip(3), images)
        images = torch.where(y_flip, images.flip(2), images)
        moved = (parameters[:, 2:] != 0).any(1)
        if not moved.any():
            return images
        grid = F.affine_grid(self._inverse(parameters[moved], images.shape[2:]), list(images[moved].shape), False)
        # On the device of the grid: one without float64 has no bicubic interpolation either.
        old = images[moved].to(grid.device)
        warped = F.grid_sample(old, grid.to(old), "bicubic", "reflection", False)
        images[moved] = warped.clamp(-1, 1).to(images.device)  # bicubic interpolation overshoots at edges
        return images

    def _inverse(self, parameters: Tensor, size: torch.Size) -> Tensor:
        """Affine maps [B, 2, 3] from positions in the new image to the old one, in half sides from the centre."""
        _, _, scale, rotation, angle, stretch, x_shift, y_shift = double(parameters).unbind(1)
        enlarge = _diagonal(self.scale**scale, self.scale**scale)
        stretched = _diagonal(self.anisotropy**stretch, self.anisotropy**-stretch)
        matrix = _rotation(angle) @ stretched @ _rotation(-angle) @ _rotation(-rotation) @ enlarge
        half = torch.tensor([size[1] / 2, size[0] / 2], dtype=torch.float64, device=matrix.device)
        shift = 2 * self.translation * torch.stack([x_shift, y_shift], 1)[:, :, None]
        inverse = matrix.inverse() * half / half[:, None]
        return torch.cat([inverse, -inverse @ shift], 2)


def to_labels(parameters: Tensor) -> Tensor:
    """The labels [B, 9] of ``parameters`` [B, 8], the last column of table 6; 0 for no transform."""
    x_flip, y_flip, scale, rotation, angle, stretch, x_shift, y_shift = parameters.unbind(1)
    turned = [rotation.cos() - 1, rotation.sin()]
    stretched = [stretch * angle.cos(), stretch * angle.sin()]
    return torch.stack([x_flip, y_flip, scale, *turned, *stretched, x_shift, y_shift], 1)


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    """Matrices [B, 2, 2]."""
    return torch.diag_embed(torch.stack([x, y], 1))


def _rotation(angle: Tensor) -> Tensor:
    """Matrices [B, 2, 2] that rotate from the x axis towards the y axis, which points down."""
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1)
    return rows.unflatten(1, (2, 2))

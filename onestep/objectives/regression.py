"""DMD's regression on pairs of noise and teacher image (Yin et al. 2023, arXiv 2311.18828, section 3.3)."""

from torch import Tensor

from onestep.noise import per_sample_sum


def regression_loss(x_generated: Tensor, x_teacher: Tensor) -> Tensor:
    """The mean squared error per dimension [B] of ``x_generated`` against ``x_teacher``, images [B, ...] in data units.

    Eq. 9 of the paper, with another distance. The paper uses LPIPS with weight 0.25. LPIPS needs a network pretrained
    on photographs, which this package does not depend on. The weight 0.25 does not carry over to this distance.

    Raises:
        ValueError: for different shapes, which would broadcast.
    """
    if x_generated.shape != x_teacher.shape:
        raise ValueError(
            f"expected x_teacher of the shape of x_generated, {tuple(x_generated.shape)}, got {tuple(x_teacher.shape)}"
        )
    return per_sample_sum((x_generated - x_teacher) ** 2) / x_teacher[0].numel()

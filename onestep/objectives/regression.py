"""DMD's regression on pairs of noise and teacher image (Yin et al. 2023, arXiv 2311.18828, section 3.3)."""

from torch import Tensor

from onestep.noise import per_sample_sum


def regression_loss(x_generated: Tensor, x_teacher: Tensor) -> Tensor:
    """The mean squared error per dimension [B] of ``x_generated`` against ``x_teacher``, images [B, ...] in data units.

    Eq. 9 of the paper, which measures the distance by LPIPS and adds it with weight 0.25. LPIPS needs a network
    pretrained on photographs, which this package does not depend on; the weight that suits this distance is another.

    Raises:
        ValueError: for shapes that differ, which would broadcast.
    """
    if x_generated.shape != x_teacher.shape:
        raise ValueError(
            f"expected one target for each prediction, got shapes {tuple(x_teacher.shape)} and "
            f"{tuple(x_generated.shape)}"
        )
    return per_sample_sum((x_generated - x_teacher) ** 2) / x_teacher[0].numel()

"""The denoiser convention: ``D(x_sigma [B, C, H, W], sigma [B], condition) -> x0 prediction [B, C, H, W]``.

Everything inside the package speaks it; a network of another family is wrapped once, at the boundary.
"""

from typing import Protocol

from torch import Tensor

from onestep.noise import expand_like


class Denoiser(Protocol):
    """Anything that predicts x0. ``condition`` is what the data gives: one-hot labels [B, label_dim] or None."""

    def __call__(self, x_sigma: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor: ...


def score(x0: Tensor, x_sigma: Tensor, sigma: Tensor) -> Tensor:
    """The score ``(D - x_sigma) / sigma^2`` [B, ...] of the law whose x0-prediction at ``x_sigma`` is ``x0``."""
    return (x0 - x_sigma) / expand_like(sigma, x_sigma) ** 2

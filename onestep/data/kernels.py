"""Blur kernels of Real-ESRGAN (arXiv 2107.10833, sec. 3) and BSRGAN: odd squares in float64, with the sum 1."""

import math

import torch
from torch import Tensor


def gaussian(squares: Tensor, shape: float = 1.0) -> Tensor:
    """exp(-m^shape / 2) for m in ``squares``; a ``shape`` of 1 is a Gaussian, another a generalised one."""
    return _normalized((-(squares**shape) / 2).exp())


def plateau(squares: Tensor, shape: float) -> Tensor:
    """1 / (1 + m^shape) for m in ``squares``."""
    return _normalized(1 / (1 + squares**shape))


def sinc(size: int, cutoff: float) -> Tensor:
    """The low-pass filter of circular frequencies below ``cutoff`` in (0, pi], cut to ``size``; it rings.

    It is w J1(w r) / (2 pi r) at the distance r from the middle, and w^2 / (4 pi) there.
    """
    distance = _places(size).square().sum(-1).sqrt()
    middle = distance == 0
    apart = torch.where(middle, 1.0, distance)
    kernel = cutoff * torch.special.bessel_j1(cutoff * apart) / (2 * math.pi * apart)
    return _normalized(torch.where(middle, cutoff**2 / (4 * math.pi), kernel))


def squared_distances(size: int, deviations: tuple[float, float], angle: float = 0.0, shift: float = 0.0) -> Tensor:
    """v' S^-1 v [size, size] for the places v of a kernel, with S = R(angle) diag(deviations^2) R(angle)'.

    Args:
        size: the kernel's side in pixels, odd.
        deviations: standard deviations along the axes of S, in pixels.
        angle: from the x axis to the first axis of S, in radians.
        shift: of the middle to the right and down, in pixels.
    """
    x, y = (_places(size) - shift).unbind(-1)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return (along / deviations[0]) ** 2 + (across / deviations[1]) ** 2


def _places(size: int) -> Tensor:
    """(x, y) of each pixel from the middle, [size, size, 2]."""
    line = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], -1)


def _normalized(kernel: Tensor) -> Tensor:
    return kernel / kernel.sum()

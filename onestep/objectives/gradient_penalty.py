"""Gradient penalties of a discriminator at noised real samples, per sample."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from onestep.noise import per_sample_sum
from onestep.ranges import Positive, PositiveRate, checked


class GradientPenalty(ABC):
    """The squared norm of the gradient of a sample's log ratio by the sample, a term of the discriminator's loss.

    Attributes:
        weight: of the penalty in the discriminator's loss: gamma / 2 in Mescheder et al. 2018.
    """

    weight: float

    @abstractmethod
    def __call__(self, log_ratio: Callable[[Tensor], Tensor], x_sigma: Tensor, direction: Tensor) -> Tensor:
        """The penalties [B], with a graph to the parameters of ``log_ratio``.

        Args:
            log_ratio: the estimate [B] of log p/q as a function of noised samples.
            x_sigma: noised real samples [B, ...], in data units.
            direction: standard normal numbers [B, ...], independent of ``x_sigma``.
        """


@checked
class R1(GradientPenalty):
    """R1 exactly, with a second backward pass (Mescheder, Geiger, Nowozin 2018, arXiv 1801.04406, eq. 9)."""

    def __init__(self, weight: PositiveRate) -> None:
        self.weight = weight

    def __call__(self, log_ratio: Callable[[Tensor], Tensor], x_sigma: Tensor, direction: Tensor) -> Tensor:
        x_sigma = x_sigma.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_ratio(x_sigma).sum(), x_sigma, create_graph=True)
        return per_sample_sum(gradient.square())


@checked
class FiniteDifferenceR1(GradientPenalty):
    """R1 by the squared difference along a random direction (Lin et al. 2025, arXiv 2501.08316, sec. 3.4).

    Its mean over directions is R1 in the limit of a small ``step``, in data units. It has no second backward pass,
    which compiled and sharded networks and fused attention lack.
    """

    def __init__(self, weight: PositiveRate, step: Positive) -> None:
        self.weight, self.step = weight, step

    def __call__(self, log_ratio: Callable[[Tensor], Tensor], x_sigma: Tensor, direction: Tensor) -> Tensor:
        both = log_ratio(torch.cat([x_sigma, x_sigma + self.step * direction]))
        first, second = both.chunk(2)
        return ((second - first) / self.step).square()

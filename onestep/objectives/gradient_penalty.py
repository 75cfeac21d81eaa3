"""Penalties of a discriminator's gradient by the sample, per sample.

Its logit estimates log p/q. The gradient of the exact log p/q of noised samples is the score of p minus that of q.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from onestep.noise import per_sample_sum
from onestep.ranges import Positive, PositiveRate, checked


class GradientPenalty(ABC):
    """The squared distance of the log ratio's gradient from a target, a term of the discriminator's loss.

    Args:
        weight: of the penalty in the discriminator's loss: gamma / 2 in Mescheder et al. 2018.
        matches_scores: False for R1: the gradient by noised real samples, with the target 0 (Mescheder, Geiger, Nowozin
            2018, arXiv 1801.04406, eq. 9). True for score matching of the ratio: the gradient by noised generated
            samples, in units of their noise, with the target ``(x0_teacher - x0_fake) / sigma``.
    """

    def __init__(self, weight: PositiveRate, matches_scores: bool) -> None:
        self.weight, self.matches_scores = weight, matches_scores

    @abstractmethod
    def __call__(
        self, log_ratio: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, target: Tensor | None = None
    ) -> Tensor:
        """The penalties [B], with a graph to the parameters of ``log_ratio``.

        Args:
            log_ratio: the estimate [B] of log p/q as a function of ``x``.
            x: where it is differentiated, [B, ...].
            direction: standard normal numbers [B, ...], independent of ``x``.
            target: of the gradient, [B, ...]; None for 0.
        """


@checked
class ExactPenalty(GradientPenalty):
    """The squared distance itself, with a second backward pass. For the arguments see :class:`GradientPenalty`."""

    def __init__(self, weight: PositiveRate, matches_scores: bool) -> None:
        super().__init__(weight, matches_scores)

    def __call__(
        self, log_ratio: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, target: Tensor | None = None
    ) -> Tensor:
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_ratio(x).sum(), x, create_graph=True)
        return per_sample_sum((gradient if target is None else gradient - target).square())


@checked
class FiniteDifferencePenalty(GradientPenalty):
    """The squared distance along a random direction, by a difference (Lin et al. 2025, arXiv 2501.08316, sec. 3.4).

    Its mean over directions is the exact penalty in the limit of a small ``step``, in the unit of x. It has no second
    backward pass, which compiled and sharded networks and fused attention lack.
    """

    def __init__(self, weight: PositiveRate, matches_scores: bool, step: Positive) -> None:
        super().__init__(weight, matches_scores)
        self.step = step

    def __call__(
        self, log_ratio: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, target: Tensor | None = None
    ) -> Tensor:
        first, second = log_ratio(torch.cat([x, x + self.step * direction])).chunk(2)
        slope = (second - first) / self.step
        return (slope if target is None else slope - per_sample_sum(target * direction)).square()

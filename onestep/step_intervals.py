"""Noise levels that depend on the step of a few-step generator."""

from collections.abc import Callable, Sequence
from copy import copy
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from onestep.noise import SigmaDistribution, between, check_levels
from onestep.ranges import Positive, checked


@checked
class StepIntervals(SigmaDistribution):
    """A distribution for each step of a generator: the levels between its own and that of the next step.

    TDM's (arXiv 2503.06674). The object itself is the mixture of all steps in equal parts; :meth:`at_step` gives one's.

    Args:
        distribution: makes the distribution that is divided from ``sigma_min`` and ``sigma_max``.
        sigma_min, sigma_max: the lowest level of the last step and the highest of the first, in data units.
        later_sigmas: the levels of the steps after the first, descending; empty for a generator of one step.

    Raises:
        ValueError: for levels that do not descend from ``sigma_max`` to ``sigma_min``.
    """

    def __init__(
        self, distribution: Callable[..., SigmaDistribution], sigma_min: Positive | None, sigma_max: Positive | None,
        later_sigmas: Sequence[Positive],
    ) -> None:  # fmt: skip
        lowest, highest = check_levels(sigma_min, sigma_max)
        levels = [lowest, *reversed(later_sigmas), highest]
        if any(below >= above for below, above in pairwise(levels)):
            raise ValueError(
                f"later_sigmas={list(later_sigmas)}: expected descending levels between sigma_max={highest} and "
                f"sigma_min={lowest}, the ends of the steps' intervals"
            )
        self.whole = between(distribution, lowest, highest)
        self.edges = self.whole.cdf(torch.tensor(levels, dtype=torch.float64))
        self.drawn = range(len(levels) - 1)  # the intervals, from the lowest

    def at_step(self, step: int) -> Self:
        of_step = copy(self)
        of_step.drawn = self.drawn[len(self.drawn) - 1 - step :][:1]
        return of_step

    def quantile(self, u: Tensor) -> Tensor:
        place, edges = self.drawn.start + u * len(self.drawn), self.edges.to(u)
        index = place.long().clamp(self.drawn.start, self.drawn.stop - 1)
        return self.whole.quantile(torch.lerp(edges[index], edges[index + 1], place - index))

    def cdf(self, sigma: Tensor) -> Tensor:
        share, edges = self.whole.cdf(sigma), self.edges.to(sigma)
        index = (torch.searchsorted(edges, share) - 1).clamp(self.drawn.start, self.drawn.stop - 1)
        place = index + (share - edges[index]) / (edges[index + 1] - edges[index])
        return ((place - self.drawn.start) / len(self.drawn)).clamp(0, 1)

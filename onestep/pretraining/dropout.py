"""Dropout of prompts in the training of a text-to-image network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from onestep.denoiser import Condition
from onestep.noise import expand_like
from onestep.seeding import BatchRandom


@dataclass(frozen=True)
class PromptDropout:
    """Replaces the prompts of random images by the empty one, so that the network learns both (arXiv 2207.12598).

    Args:
        share: the expected share of these images, in [0, 1).
        empty: the condition [1, ...] of the empty prompt.
    """

    share: float
    empty: Condition

    def __call__(self, condition: Condition, random: BatchRandom) -> Condition:
        """The ``condition`` of the rows of ``random`` with the empty prompt in some."""
        dropped = random.uniform(()) < self.share

        def replace(given: Tensor, empty: Tensor) -> Tensor:
            return torch.where(expand_like(dropped, given), empty.to(given), given)

        return {name: replace(given, self.empty[name]) for name, given in condition.items()}

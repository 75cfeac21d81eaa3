"""Variety of the images of one prompt across seeds."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.metrics.extraction import Kind
from onestep.metrics.features import FeatureNetwork


class PromptSpread:
    """How different the images of one prompt are: the means over prompts with two or more samples.

    ``prompt_spread`` is the mean of ``1 - cosine`` of the features of two different samples of a prompt, in [0, 2].
    ``prompt_vendi`` is the Vendi score with the cosine as kernel (Friedman and Dieng 2022, arXiv 2210.02410): the
    effective number of different images among a prompt's n, from 1 (all equal) to n. Values with other numbers of
    samples a prompt do not compare. It uses no real images.

    Args:
        features: the metric's feature network; None for the evaluator's.
    """

    reads: Kind = "of_prompts"
    title: ClassVar = {
        "prompt_spread": "spread of a prompt's images",
        "prompt_vendi": "Vendi score of a prompt's images",
    }
    higher_is_better = True
    fewest = 2

    def __init__(self, features: FeatureNetwork | None = None) -> None:
        self.features = features

    def __call__(self, real: object, generated: Tensor) -> dict[str, float]:
        """The two values of ``generated`` [N, 1 + D], a number of the prompt and the features; ``real`` is unused.

        Raises:
            ValueError: if no prompt has two samples.
        """
        prompts, features = generated[:, 0], F.normalize(generated[:, 1:].double(), dim=1)
        groups = [group for prompt in prompts.unique() if len(group := features[prompts == prompt]) > 1]
        if not groups:
            raise ValueError(
                f"each of the {len(generated):,} samples has a prompt of its own: draw more samples than prompts"
            )
        found = torch.tensor([_spread_and_vendi(group) for group in groups], dtype=torch.float64).mean(0).tolist()
        return dict(zip(self.title, found, strict=True))


def _spread_and_vendi(features: Tensor) -> tuple[float, float]:
    """Both values of the ``features`` [n, D] of norm 1, n > 1."""
    count, cosines = len(features), features @ features.T
    mean_of_others = (cosines.sum() - cosines.trace()) / (count * (count - 1))
    shares = torch.linalg.eigvalsh(cosines / count).clamp_min(0)
    return float(1 - mean_of_others), float(torch.special.entr(shares).sum().exp())

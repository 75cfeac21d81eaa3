"""The spread and the Vendi score of a prompt's images, against closed forms and another computation."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from onestep.data.dataset import ImagesInMemory
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.prompt_spread import PromptSpread


class MeanColours(FeatureNetwork):
    """The mean of each channel."""

    title = "mean colours"

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


def measure(*groups: Tensor) -> dict[str, float]:
    rows = [torch.cat([torch.full((len(group), 1), float(number)), group], 1) for number, group in enumerate(groups)]
    return PromptSpread()(None, torch.cat(rows).double())


@pytest.mark.parametrize(
    ("rows", "spread", "vendi"),
    [
        ([0, 0, 0, 0], 0.0, 1.0),
        ([0, 1, 2, 3], 1.0, 4.0),  # orthogonal features
        ([0, 0, 1, 1], 2 / 3, 2.0),  # two pictures, equally often: four of six pairs differ
        ([0, 0, 0, 1], 1 / 2, math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))),
    ],
)
def test_distinct_pictures(rows: list[int], spread: float, vendi: float) -> None:
    """The effective number of pictures is the exponential of the entropy of their shares, for any lengths."""
    features = torch.eye(5)[rows] * torch.tensor([[1.0], [2.0], [0.5], [7.0]])
    assert measure(features) == pytest.approx({"prompt_spread": spread, "prompt_vendi": vendi}, abs=1e-9)


def test_the_mean_over_prompts_against_numpy() -> None:
    """Each prompt counts once, however many images it has, and one image has no spread."""
    rng = torch.Generator().manual_seed(0)
    groups = [torch.randn(count, 7, generator=rng) for count in (2, 9, 1)]
    spreads, scores = [], []
    for group in groups[:2]:
        unit = [row / np.linalg.norm(row) for row in group.double().numpy()]
        spreads.append(np.mean([1 - one @ other for one, other in combinations(unit, 2)]))
        shares = np.linalg.svd(np.stack(unit), compute_uv=False) ** 2 / len(unit)
        scores.append(np.exp(-np.sum(shares * np.log(shares))))
    expected = {"prompt_spread": np.mean(spreads), "prompt_vendi": np.mean(scores)}
    assert measure(*groups) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="each of the 2 samples has a prompt of its own"):
        measure(*groups[2:], *groups[2:])


def test_the_evaluator_groups_by_prompt() -> None:
    """Red and green images of the prompt b alone, in several batches; the reference is not read."""
    red, green = (torch.eye(3)[row][:, None, None].expand(3, 4, 4) * 2 - 1 for row in (0, 1))
    images, prompts = torch.stack([red, red, green, red]), ["a", "b", "b", "b"]
    evaluator = Evaluator(MeanColours(), {"prompt_spread": PromptSpread()}, ImagesInMemory(images))
    found = evaluator(images.split(3), prompts=prompts)
    entropy = math.log(3) - 2 / 3 * math.log(2)
    assert found == pytest.approx({"prompt_spread": 2 / 3, "prompt_vendi": math.exp(entropy)}, abs=1e-6)
    with pytest.raises(ValueError, match="compares the images of a prompt, and there are none"):
        evaluator([images])

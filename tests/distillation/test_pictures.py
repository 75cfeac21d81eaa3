"""Images as students: a method's gradient reaches the samples' graph, also without a generator network."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.distillation.method import Method
from onestep.images import to_uint8
from onestep.metrics.classifier import load_classifier
from onestep.models.loading import load_teacher
from onestep.noise import LogUniformSigma, Noised
from onestep.objectives.sds import SDS
from onestep.objectives.weighting import PowerWeighting

SAMPLES = 8  # noise levels per iteration


def grey() -> Tensor:
    return torch.zeros(1, 1, 8, 8)


def pixels(picture: Tensor) -> Tensor:
    return picture


def scattered() -> Tensor:
    """16 blobs: row, column, log width and brightness of each."""
    place = 7 * torch.rand(16, 2, generator=torch.Generator().manual_seed(1))
    return torch.cat([place, torch.zeros(16, 1), torch.full((16, 1), 0.3)], dim=1)


def blobs(parameters: Tensor) -> Tensor:
    """An image [1, 1, 8, 8] of Gaussian blobs on black."""
    row, column, log_width, brightness = (part[:, None, None] for part in parameters.unbind(1))
    grid = torch.arange(8.0)
    squared_distance = (grid[:, None] - row).square() + (grid - column).square()
    light = (brightness * torch.exp(-squared_distance / (2 * log_width.exp().square()))).sum(0)
    return 2 * light.clamp(0, 1)[None, None] - 1


@pytest.mark.parametrize("digit", [0, 3, 7])
@pytest.mark.parametrize("start, render", [(grey, pixels), (scattered, blobs)])
def test_a_picture_becomes_the_digit_that_is_asked_for(
    start: Callable[[], Tensor], render: Callable[[Tensor], Tensor], digit: int
) -> None:
    """SDS trains no network. The blobs' gradient goes through their rendering."""
    method = Method(load_teacher("digits", guidance=1.0), SDS(PowerWeighting(2.0)))
    rng = torch.Generator().manual_seed(0)
    levels, condition = LogUniformSigma(0.2, 2.0), {"labels": F.one_hot(torch.tensor([digit] * SAMPLES), 10).float()}
    student = nn.Parameter(start())
    optimizer = torch.optim.Adam([student], lr=0.1)
    classify = load_classifier("digits").classify

    def probability() -> float:
        picture = render(student).detach().clamp(-1, 1)
        return classify(to_uint8(picture)).softmax(1)[0, digit].item()

    assert probability() < 0.5
    for _ in range(100):
        samples = render(student).expand(SAMPLES, -1, -1, -1)
        noise = torch.randn(samples.shape, generator=rng)
        optimizer.zero_grad()
        method.generator_losses(samples, condition, Noised(levels.sample(SAMPLES, rng), noise)).total.backward()
        optimizer.step()
    assert probability() > 0.9

"""The evaluator on a feature network that can be computed by hand."""

import pytest
import torch
from torch import Tensor, nn

from onestep.data.dataset import ImagesInMemory
from onestep.metrics.evaluator import Evaluator, Metric


class MeanPixel(nn.Module):
    """One feature: the mean pixel, 0 to 255."""

    image_shape = (1, 2, 2)

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return images.float().mean((1, 2, 3))[:, None]


def difference_of_means(real: Tensor, generated: Tensor) -> float:
    return float(generated.mean() - real.mean())


def first_and_count(real: Tensor, generated: Tensor) -> float:
    return float(generated[0] + 1000 * len(generated) + 1_000_000 * len(real))


METRICS: dict[str, Metric] = {"difference": difference_of_means, "first": first_and_count}


def constant_images(*values: float) -> Tensor:
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def test_figures_by_hand() -> None:
    """A real pixel of 0 is quantised to 128, generated ones of 0.5 and 9 to 191 and 255."""
    evaluator = Evaluator(MeanPixel(), METRICS, reference=ImagesInMemory(constant_images(0.0, 0.0, 0.0)))
    figures = evaluator([constant_images(0.5, 9.0)])
    assert figures == {"difference": (191 + 255) / 2 - 128, "first": 191 + 2_000 + 3_000_000}


def test_batches_do_not_matter() -> None:
    random = torch.Generator().manual_seed(0)
    reference, images = (torch.randn(count, 1, 2, 2, generator=random).clamp(-1, 1) for count in (2300, 70))
    evaluator = Evaluator(MeanPixel(), METRICS, ImagesInMemory(reference))
    assert torch.equal(evaluator.real, evaluator.extract([reference]))
    assert evaluator([images]) == evaluator(iter(images.split(32))) == evaluator(images.split(1))


def test_images_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"takes images \(1, 2, 2\), the data has \(3, 2, 2\)"):
        Evaluator(MeanPixel(), METRICS, ImagesInMemory(torch.zeros(5, 3, 2, 2)))

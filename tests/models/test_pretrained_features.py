"""The features of pretrained networks that a discriminator reads."""

from pathlib import Path

import pytest
import torch
import transformers

from onestep.images import from_uint8
from onestep.metrics.classifier import Classifier, load_classifier
from onestep.metrics.inception import InceptionFeatures
from onestep.metrics.transformer_features import DINOv2Features
from onestep.models.pretrained_features import PretrainedFeatures

RANDOM = torch.Generator().manual_seed(0)
LEVEL = torch.zeros(2)


def test_a_classifiers_maps_lead_to_its_features() -> None:
    classifier = load_classifier("digits")
    host = PretrainedFeatures(classifier, (1, 8, 8))
    pixels = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8, generator=RANDOM)
    first, *_, last = host(from_uint8(pixels), LEVEL, {})
    expected = torch.nn.functional.conv2d((pixels - 128.0) / 127.5, classifier.convs[0].weight, padding=1)  # type: ignore[arg-type]
    expected = expected + classifier.convs[0].bias[:, None, None]  # type: ignore[index]
    torch.testing.assert_close(first, expected * expected.sigmoid(), rtol=1e-4, atol=1e-4)
    features = torch.nn.functional.silu(classifier.hidden(last.flatten(1)))
    torch.testing.assert_close(features, classifier(pixels), rtol=1e-4, atol=1e-4)
    assert [tuple(one.shape[1:]) for one in host(from_uint8(pixels), LEVEL, {})] == host.feature_shapes
    assert torch.equal(host(from_uint8(pixels), LEVEL, {}, levels=(-1,))[0], last)
    assert not host.training and not any(parameter.requires_grad for parameter in host.parameters())


def test_the_patches_of_dinov2_are_those_of_transformers(dinov2_folder: Path) -> None:
    """One channel is repeated. Token 1 + 2 i + j is that of row i and column j."""
    host = PretrainedFeatures(DINOv2Features(str(dinov2_folder), 28, None), (1, 28, 28))
    x = torch.rand(2, 1, 28, 28, generator=RANDOM) * 2 - 1
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    pixels = ((x + 1) / 2 - mean) / std
    model = transformers.Dinov2Model.from_pretrained(dinov2_folder).eval()
    states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    maps = host(x, LEVEL, {})
    assert len(maps) == 2 and host.feature_shapes == [(8, 2, 2)] * 2
    for found, state in zip(maps, states[1:], strict=True):
        for row, column in ((0, 0), (0, 1), (1, 0)):
            expected = state[:, 1 + 2 * row + column]
            torch.testing.assert_close(found[:, :, row, column], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "resized"), [((1, 8, 8), False), ((1, 13, 11), True)])
def test_features_are_differentiable_by_the_sample(shape: tuple[int, int, int], resized: bool) -> None:
    host = PretrainedFeatures(load_classifier("digits"), shape).double()
    x, direction = torch.randn(2, 2, *shape, generator=RANDOM, dtype=torch.float64)
    x.requires_grad_()
    weights = [torch.randn(one, generator=RANDOM, dtype=torch.float64) for one in host.feature_shapes]

    def value(x: torch.Tensor) -> torch.Tensor:
        maps = host(x, LEVEL, {})
        return torch.stack([(one / 100 * weight).sum() for one, weight in zip(maps, weights, strict=True)]).sum()

    (gradient,) = torch.autograd.grad(value(x), x)
    difference = (value(x + 1e-6 * direction) - value(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=0)
    assert (host.network.image_shape != shape) == resized


def test_networks_that_do_not_fit(inception_file: Path) -> None:
    inception = InceptionFeatures.__new__(InceptionFeatures)
    torch.nn.Module.__init__(inception)
    inception.title = "an Inception"
    with pytest.raises(
        ValueError, match=r"^an Inception has no feature maps for a discriminator or a distance: choose"
    ):
        PretrainedFeatures(inception, (3, 8, 8))
    with pytest.raises(ValueError, match="takes 1 channels, and the samples have 3: choose another network"):
        PretrainedFeatures(Classifier("grey", [1, 8, 8], 2, 4, [4], [2]), (3, 8, 8))

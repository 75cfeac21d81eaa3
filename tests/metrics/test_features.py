"""Quantisation to uint8, and the digits' feature network."""

from pathlib import Path

import pytest
import torch

from onestep.data.digits import Digits
from onestep.metrics.classifier import load_classifier
from onestep.metrics.features import to_uint8


@pytest.mark.parametrize(
    "value, pixel",
    [
        (-1.0, 0),  # 0.5, truncated
        (1.0, 255),  # 255.5, clipped
        (0.0, 128),
        (-0.002, 127),  # 127.745
        (0.5, 191),  # 191.75
        (-7.0, 0),
        (7.0, 255),
    ],
)
def test_to_uint8(value: float, pixel: int) -> None:
    result = to_uint8(torch.tensor([value]))
    assert result.dtype == torch.uint8 and result.item() == pixel


def test_every_grey_level_comes_back() -> None:
    levels = torch.arange(256)
    assert torch.equal(to_uint8((levels.double() - 127.5) / 127.5), levels.to(torch.uint8))


@torch.no_grad()
def test_bundled_network_knows_the_digits() -> None:
    network, data = load_classifier("digits"), Digits()
    assert data.labels is not None
    assert network.image_shape == data.image_shape
    images = to_uint8(data.images)
    correct = network.classify(images).argmax(1) == data.labels.argmax(1)
    assert correct.double().mean() >= 0.99
    features = network(images)
    assert features.shape == (1797, network.num_features)
    # The last layer reads nothing but the features.
    torch.testing.assert_close(network.logits(features), network.classify(images))


def test_bundled_network_is_frozen() -> None:
    network = load_classifier("digits")
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_absent_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no feature network at .*none\.safetensors: train one"):
        load_classifier(str(tmp_path / "none.safetensors"))

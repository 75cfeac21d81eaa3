"""The digits' feature network."""

from pathlib import Path

import pytest
import torch

from onestep.data.digits import Digits
from onestep.images import to_uint8
from onestep.metrics.classifier import load_classifier


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
    # The last layer's only input is the features.
    torch.testing.assert_close(network.logits(features), network.classify(images))


def test_bundled_network_is_frozen() -> None:
    network = load_classifier("digits")
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_other_weights_have_another_fingerprint() -> None:
    network, other = load_classifier("digits"), load_classifier("digits")
    assert network.fingerprint() == other.fingerprint()
    next(other.parameters()).flatten()[0] += 1
    assert network.fingerprint() != other.fingerprint()


def test_absent_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no feature network at .*none\.safetensors: train one"):
        load_classifier(str(tmp_path / "none.safetensors"))

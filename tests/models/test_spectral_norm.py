"""Spectral norms against torch.linalg's singular values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onestep.models.discriminator import ChannelMean, Discriminator, PooledHead, StridedHeads
from onestep.models.sample_networks import ConvolutionalNetwork
from onestep.models.spectral_norm import add_spectral_norm, has_spectral_norm, iterate

SHAPES = [(8, 8, 8), (16, 4, 4)]
MAKE: list[Callable[[], Discriminator]] = [
    lambda: PooledHead(SHAPES, 3, "teacher", 8, None, True),
    lambda: StridedHeads(SHAPES, 3, "teacher", None, 4),
    lambda: ConvolutionalNetwork([(3, 8, 8)], 3, "samples", 8, 8, None, False),
]


def largest(weight: Tensor) -> float:
    return float(torch.linalg.svdvals(weight.detach().flatten(1))[0])


@pytest.mark.parametrize("make", MAKE)
def test_the_largest_singular_value_of_every_layer_is_1(make: Callable[[], Discriminator]) -> None:
    torch.manual_seed(0)
    network = make()
    before: dict[str, Any] = {
        name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    old = {name: layer.weight.detach().clone() for name, layer in before.items()}
    add_spectral_norm(network)
    assert len(before) >= 4 and all(map(has_spectral_norm, before.values()))
    for name, layer in before.items():
        for _ in range(300):
            iterate(layer)
        original = layer.parametrizations.weight.original
        assert not old[name].any() or torch.equal(original, old[name])
        torch.testing.assert_close(layer.weight, original / largest(original), rtol=1e-3, atol=1e-5)
        assert abs(largest(layer.weight) - 1) < 1e-3 < abs(largest(original) - 1)


def test_a_pass_does_not_change_the_estimate_and_a_step_of_the_power_method_does() -> None:
    torch.manual_seed(0)
    head = PooledHead(SHAPES, 3, "teacher", 8, [-1], False)
    add_spectral_norm(head)
    features = [torch.randn(2, 16, 4, 4)]
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter))
    buffers = {name: value.clone() for name, value in head.named_buffers()}
    logits = head(features, torch.ones(2), {})
    assert torch.equal(head(features, torch.ones(2), {}), logits) and logits.any()
    assert buffers and all(torch.equal(value, buffers[name]) for name, value in head.named_buffers())
    conv: Any = head.heads[0].conv0
    error = abs(largest(conv.weight) - 1)
    iterate(conv)
    assert abs(largest(conv.weight) - 1) < 0.5 * error and error > 0.05
    u, v = conv.parametrizations.weight[0]._u, conv.parametrizations.weight[0]._v
    matrix = conv.parametrizations.weight.original.flatten(1)
    expected = nn.functional.normalize(matrix @ buffers["heads.0.conv0.parametrizations.weight.0._v"], dim=0)
    torch.testing.assert_close(u, expected.detach())
    torch.testing.assert_close(v, nn.functional.normalize(matrix.T @ u, dim=0).detach())


def test_a_discriminator_without_layers_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^discriminator.spectral_norm=true has no effect: this discriminator has no "
    ):
        add_spectral_norm(ChannelMean(SHAPES, 0, "fake_score", 10.0))

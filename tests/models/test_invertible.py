"""The invertible network of details."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onestep.haar import haar
from onestep.models.invertible import InvertibleNetwork, load_invertible


def random_network(channels: int, nodes: int = 3) -> InvertibleNetwork:
    """Of random weights."""
    torch.manual_seed(0)
    network = InvertibleNetwork(channels, 8, nodes).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 3, 6, 10), (2, 1, 2, 2), (1, 4, 8, 8)])
def test_it_is_inverted(shape: tuple[int, ...]) -> None:
    network, x = random_network(shape[1]), images(*shape)
    low, z, _ = network.encode(x)
    assert z.shape == (shape[0], 3 * shape[1], shape[2] // 2, shape[3] // 2) and torch.equal(network(x), z)
    assert (z - haar(x, 1)[1][0]).abs().amax((0, 2, 3)).min() > 0.05  # no band is left as it was
    torch.testing.assert_close(network.decode(low, z), x, rtol=0, atol=1e-10)
    other = z + 0.1
    torch.testing.assert_close(network(network.decode(low, other)), other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_determinant_is_that_of_the_jacobian(channels: int) -> None:
    network, x = random_network(channels), images(2, channels, 4, 4)
    for one, log_det in zip(x, network.encode(x)[2], strict=True):

        def flat(values: Tensor) -> Tensor:
            low, z, _ = network.encode(values.view(1, channels, 4, 4))
            return torch.cat([low.flatten(), z.flatten()])

        jacobian: Any = torch.autograd.functional.jacobian(flat, one.flatten())
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det, rtol=1e-10, atol=1e-10)
        assert abs(log_det) > 1


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_every_band_is_scaled(channels: int) -> None:
    """By two couplings, also with an odd number of bands: rho is 2 tanh(1/2) everywhere, and the rest is 0."""
    network = InvertibleNetwork(channels, 4, 2).double()
    nodes: Any = network.nodes
    for node in nodes:
        last = node.rho_and_eta[-1]
        last.bias[: len(last.bias) // 2] = 1.0
    x = images(1, channels, 4, 4)
    once = math.exp(2 * math.tanh(0.5))
    ratio = network(x) / haar(x, 1)[1][0]
    assert {round(value / once, 6) for value in ratio.flatten().tolist()} == {1.0}


@torch.no_grad()
def test_a_new_network_is_the_gaussian_of_each_band() -> None:
    """The bits are its entropy, for details that are exactly so: in grey levels."""
    deviations = torch.linspace(0.02, 0.3, 9, dtype=torch.float64)
    details = torch.randn(200, 9, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = details / details.square().mean((0, 2, 3), keepdim=True).sqrt() * deviations[:, None, None]
    network = InvertibleNetwork(3, 4, 2).double()
    x = network.decode(images(200, 3, 8, 8), exact)
    network.fit_scales(x)
    torch.testing.assert_close(network.log_scale.data, -deviations.log(), rtol=1e-9, atol=1e-9)
    entropy = (torch.log2(127.5 * deviations) + math.log2(2 * math.pi * math.e) / 2).mean()
    torch.testing.assert_close(network.bits(x).mean(), entropy, rtol=1e-9, atol=0)


@torch.no_grad()
def test_the_bundled_network_normalises_details() -> None:
    """Of smooth waves with a texture of a grey level: more likely than by the Gaussian of each band of photographs."""
    rows = torch.linspace(0, 6, 64, dtype=torch.float64)
    smooth = (rows.sin()[:, None] + (1.7 * rows).cos()[None]) / 3 * torch.tensor([0.9, 1.0, 0.8])[:, None, None]
    x = (smooth + images(3, 64, 64) / 100)[None]
    network = load_invertible("photographs").double()
    low, z, _ = network.encode(x)
    torch.testing.assert_close(network.decode(low, z), x, rtol=0, atol=1e-9)
    assert sum(parameter.numel() for parameter in network.parameters()) == 102_762
    assert z.mean().abs() < 0.2 and 0.8 < z.std() < 1.4
    bands = InvertibleNetwork(3, 1, 1).double()
    bands.log_scale.copy_(network.log_scale)
    assert network.bits(x) < bands.bits(x) - 1.5


def test_a_folder(tmp_path: Path) -> None:
    network = random_network(3).float()
    network.save_pretrained(tmp_path / "own")
    loaded, x = load_invertible(str(tmp_path / "own")), images(1, 3, 4, 4).float()
    assert torch.equal(loaded(x), network(x)) and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    config = tmp_path / "own" / "config.json"
    content = json.loads(config.read_text())
    for changed, message in (
        (content | {"channels": 1}, "the weights at .* do not fit config.json: .* tensors differ"),
        (content | {"nodes": 100}, "describes no network"),
        (content | {"nodes": 10**8}, "config.json: nodes"),
        (content | {"width": "8"}, "config.json: width"),
        ({"channels": 3}, "config.json: width"),
    ):
        config.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            load_invertible(str(tmp_path / "own"))
    with pytest.raises(ValueError, match="^no invertible network at 'nowhere': expected the folder "):
        load_invertible("nowhere")

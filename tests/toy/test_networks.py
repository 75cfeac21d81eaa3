"""The networks for points."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator
from onestep.objectives.adversarial import discriminator_loss
from onestep.toy.gaussian_mixture import GaussianMixture
from onestep.toy.networks import PointNetwork


def test_an_affine_generator_is_affine() -> None:
    """EDM's preconditioning around ``M x + b`` at one noise level: ``(c_skip + c_out c_in M) x + c_out b``."""
    denoiser = EDMDenoiser((2, 1, 1), sigma_data=0.5, architecture="Affine")
    matrix, offset = denoiser.model.map.weight, denoiser.model.map.bias
    with torch.no_grad():
        matrix.copy_(torch.tensor([[1.0, 2.0], [-3.0, 0.5]]))
        offset.copy_(torch.tensor([0.3, -0.7]))
    z = torch.randn(5, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    scale = (1.2**2 + 0.5**2) ** 0.5  # 1.3
    expected = (0.5 / scale) ** 2 * 1.2 * z.flatten(1)
    expected = expected + (1.2 * 0.5 / scale) * (1.2 * z.flatten(1) @ matrix.T / scale + offset)
    torch.testing.assert_close(Generator(denoiser, sigma_init=1.2)(z).flatten(1), expected)


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def test_mlp_by_hand() -> None:
    denoiser = EDMDenoiser((2, 1, 1), label_dim=3, architecture="MLP", options={"width": 8, "depth": 1})
    x = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    c_noise, labels = torch.linspace(-1, 1, 4), torch.eye(3)[[0, 1, 2, 0]]
    model, w = denoiser.model, dict(denoiser.model.named_parameters())
    phase = 16 * c_noise[:, None] * 10000 ** (-torch.arange(16) / 15)
    embedding = torch.cat([phase.sin(), phase.cos(), labels], 1) @ w["embedding.weight"].T + w["embedding.bias"]
    point = x.flatten(1)
    seen = torch.cat([point, *(wave(k * point) for k in (2, 4, 8) for wave in (torch.sin, torch.cos))], 1)
    hidden = seen @ w["input.weight"].T + w["input.bias"]
    hidden = hidden + silu(hidden + embedding) @ w["encoder.0.weight"].T + w["encoder.0.bias"]
    encoded = model.encode(x, model.embed(c_noise, labels))
    torch.testing.assert_close(encoded[0].flatten(1), hidden)
    hidden = hidden + silu(hidden + embedding) @ w["decoder.0.weight"].T + w["decoder.0.bias"]
    expected = silu(hidden) @ w["output.weight"].T + w["output.bias"]
    torch.testing.assert_close(model.decode(encoded, embedding).flatten(1), expected)


def test_the_discriminator_of_points_by_hand() -> None:
    torch.manual_seed(0)
    network = PointNetwork([(2, 1, 1)], 3, "samples", width=8, depth=1)
    x, sigma = torch.randn(4, 2, 1, 1), torch.linspace(0.05, 2, 4)
    labels = torch.eye(3)[[0, 1, 2, 0]]
    assert network([x], sigma, {"labels": labels}).tolist() == [[0]] * 4
    nn.init.normal_(network.logit.weight)
    w, point, s = dict(network.named_parameters()), x.flatten(1), sigma[:, None]
    phase = 4 * s.log() * 10000 ** (-torch.arange(16) / 15)
    embedding = torch.cat([phase.sin(), phase.cos(), labels], 1) @ w["embedding.weight"].T + w["embedding.bias"]
    # The mean over the noise e of sin(k (x - s e)) is the input of the wave k.
    waves = [
        (-((k * s) ** 2) / 2).exp() * wave(k * point) for k in (2, 4, 8, 16, 32) for wave in (torch.sin, torch.cos)
    ]
    seen = torch.cat([point / (1 + s**2).sqrt(), *waves], 1)
    hidden = seen @ w["input.weight"].T + w["input.bias"]
    hidden = hidden + silu(hidden + embedding) @ w["layers.0.weight"].T + w["layers.0.bias"]
    logits = network([x], sigma, {"labels": labels})
    torch.testing.assert_close(logits, silu(hidden) @ w["logit.weight"].T)
    without = network([x], sigma, {})
    assert torch.equal(without, network([x], sigma, {"labels": torch.zeros(4, 3)})) and (without != logits).all()


def test_the_discriminator_of_points_learns_a_known_ratio() -> None:
    """Of two mixtures whose modes have other weights, on samples of q that it never saw."""
    means = torch.tensor([[-0.5, 0.0], [0.5, 0.0]])
    p, q = (GaussianMixture.modes([one, 1 - one], means.tolist(), [0.1, 0.1]) for one in (0.8, 0.3))
    torch.manual_seed(0)
    network = PointNetwork([(2, 1, 1)], 0, "samples", width=32, depth=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3, betas=(0.0, 0.99))
    sigma = torch.linspace(0.05, 1.0, 512)
    for _ in range(200):
        real, generated = (law.sample(512) + sigma[:, None] * torch.randn(512, 2) for law in (p, q))
        loss = discriminator_loss(network([real], sigma, {}), network([generated], sigma, {})).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = q.sample(512) + sigma[:, None] * torch.randn(512, 2)
    exact = p.log_ratio(q, x, sigma)
    error = network([x], sigma, {})[:, 0].detach() - exact
    assert 1 - error.square().mean() / exact.var() > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (1, 8, 8), "architecture": "MLP"}, "takes points, .* img_resolution=1, got 8"),
        ({"image_shape": (2, 1, 1), "architecture": "Affine", "label_dim": 3}, "label_dim=0, got label_dim=3"),
    ],
)
def test_what_they_do_not_take(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EDMDenoiser(**arguments)


def test_a_discriminator_of_points_takes_no_images() -> None:
    with pytest.raises(ValueError, match=r"discriminator=points takes points, \[C, 1, 1\], got samples of \[1, 8, 8\]"):
        PointNetwork([(1, 8, 8)], 0, "samples", 8, 1)

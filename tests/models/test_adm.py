"""ADM against a forward pass written down from its weights, and the published size."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.models.edm.adm import DhariwalUNet
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.edm.layers import PositionalEmbedding

OPTIONS: dict[str, Any] = {
    "label_dim": 3, "augment_dim": 9, "model_channels": 32, "channel_mult": [1, 4], "channel_mult_emb": 2,
    "num_blocks": 1, "attn_resolutions": [4],
}  # fmt: skip


def random_network() -> DhariwalUNet:
    """All weights random: a fresh network's residual branches are zero, which would hide almost any mistake."""
    network = DhariwalUNet(8, 3, **OPTIONS).double().eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.copy_(torch.randn(parameter.shape, generator=random) / fan_in**0.5)
    return network


def run_adm(network: DhariwalUNet, x: Tensor, c_noise: Tensor, labels: Tensor, augment_labels: Tensor) -> Tensor:
    """The forward pass, layer by layer, without the package's modules."""
    w = network.state_dict()

    def conv(name: str, x: Tensor) -> Tensor:
        weight = w[f"{name}.weight"]
        return F.conv2d(x, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(name: str, x: Tensor) -> Tensor:
        grouped = x.reshape(len(x), min(32, x.shape[1] // 4), -1)
        grouped = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        return grouped.reshape(x.shape) * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def attend(name: str, x: Tensor) -> Tensor:
        heads = []
        for head in conv(f"{name}.qkv", norm(f"{name}.norm2", x)).split(3 * 64, dim=1):
            q, k, v = (head[:, part::3].flatten(2) for part in range(3))  # [B, 64, HW] each
            heads.append(v @ torch.softmax(q.transpose(1, 2) @ k / 8, dim=2).transpose(1, 2))
        return conv(f"{name}.proj", torch.cat(heads, dim=1).reshape(x.shape))

    def block(name: str, x: Tensor, how: str = "") -> Tensor:
        def resample(y: Tensor) -> Tensor:
            if how == "down":
                return (y[..., ::2, ::2] + y[..., 1::2, ::2] + y[..., ::2, 1::2] + y[..., 1::2, 1::2]) / 4
            return y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) if how == "up" else y

        h = conv(f"{name}.conv0", resample(F.silu(norm(f"{name}.norm0", x))))
        scale, shift = linear(f"{name}.affine", embedding)[:, :, None, None].chunk(2, dim=1)
        h = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", h) * (1 + scale) + shift))
        x = h + (conv(f"{name}.skip", x) if f"{name}.skip.weight" in w else resample(x))
        return x + attend(name, x) if f"{name}.qkv.weight" in w else x

    phase = c_noise[:, None] * torch.tensor([10000 ** (-i / 16) for i in range(16)], dtype=torch.float64)
    embedding = torch.cat([phase.cos(), phase.sin()], dim=1) + linear("map_augment", augment_labels)
    embedding = linear("map_layer1", F.silu(linear("map_layer0", embedding)))
    embedding = F.silu(embedding + linear("map_label", labels))

    skip0 = conv("enc.8x8_conv", x)
    skip1 = block("enc.8x8_block0", skip0)
    skip2 = block("enc.4x4_down", skip1, "down")
    skip3 = block("enc.4x4_block0", skip2)
    x = block("dec.4x4_in1", block("dec.4x4_in0", skip3))
    x = block("dec.4x4_block1", torch.cat([block("dec.4x4_block0", torch.cat([x, skip3], dim=1)), skip2], dim=1))
    x = block("dec.8x8_up", x, "up")
    x = block("dec.8x8_block1", torch.cat([block("dec.8x8_block0", torch.cat([x, skip1], dim=1)), skip0], dim=1))
    return conv("out_conv", F.silu(norm("out_norm", x)))


@torch.no_grad()
def test_against_a_forward_pass_by_hand() -> None:
    network, random = random_network(), torch.Generator().manual_seed(1)
    x, augment_labels = (torch.randn(*shape, generator=random).double() for shape in ((2, 3, 8, 8), (2, 9)))
    c_noise, labels = torch.tensor([-1.0, 700.0]).double(), torch.eye(3)[[2, 0]].double()
    result, expected = network(x, c_noise, labels, augment_labels), run_adm(network, x, c_noise, labels, augment_labels)
    assert expected.std() > 0.1 and "enc.4x4_block0.qkv.weight" in network.state_dict()
    # The frequencies are computed in float32, as EDM does.
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    no_noise = torch.zeros(2).double()
    expected = run_adm(network, x, no_noise, labels, augment_labels)
    torch.testing.assert_close(network(x, no_noise, labels, augment_labels), expected, rtol=0, atol=1e-9)


def test_positional_embedding_of_adm() -> None:
    """Cosines first, and frequencies 10000^(-i / 3) that stop short of 1/10000."""
    embedding = PositionalEmbedding(6, endpoint=False)(torch.tensor([2.0]))
    phases = [2 * 10000 ** (-i / 3) for i in range(3)]
    assert embedding[0].tolist() == pytest.approx([*map(math.cos, phases), *map(math.sin, phases)], abs=1e-6)


def test_published_parameter_count() -> None:
    """EDM's ImageNet-64 network, table 7 of arXiv 2206.00364: 296 million; all options at their defaults."""
    with torch.device("meta"):
        network = EDMDenoiser((3, 64, 64), 1000, architecture="DhariwalUNet")
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == 296
    assert network.feature_shapes == [(192, 64, 64), (384, 32, 32), (576, 16, 16), (768, 8, 8)]


def test_a_fresh_network_predicts_nothing() -> None:
    """Its last layer and its residual branches start at zero (EDM's initialisation of ADM)."""
    network = DhariwalUNet(8, 3, **OPTIONS)
    assert not network(torch.randn(1, 3, 8, 8), torch.zeros(1)).any()
    assert network.map_label is not None and network.map_label.weight.std().item() == pytest.approx(1, abs=0.2)


def test_resolution_that_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="img_resolution=6 cannot be halved 2 times"):
        DhariwalUNet(6, 3, channel_mult=[1, 1, 1])

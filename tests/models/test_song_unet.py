"""The U-Net's parts, and NCSN++ as a whole, against independent computations; test_edm holds DDPM++ to the original."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import correlate, upfirdn
from torch import Tensor

from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.edm.layers import FourierEmbedding, PositionalEmbedding, ResampleConv2d, SelfAttention
from onestep.models.edm.song_unet import SongUNet
from tests.helpers.edm_models import tiny_denoiser

NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}


def low_pass(x: np.ndarray, taps: list[int], resample: str, pad: int) -> np.ndarray:
    """The separable filter with stride 2 along the last two axes of ``x``, zero-padded by ``pad``, by scipy."""
    h = np.array(taps) / sum(taps)
    for axis in (-2, -1):
        size = x.shape[axis]
        if resample == "up":  # twice the filter, as half of the samples are stuffed zeros
            x = upfirdn(2 * h, x, up=2, axis=axis)
            x = np.take(x, range(pad, x.shape[axis] - pad), axis)
        else:
            first = len(h) - 1 - pad
            count = (size + 2 * pad - len(h)) // 2 + 1
            x = np.take(upfirdn(h, x, axis=axis), range(first, first + 2 * count, 2), axis)
    return x


def convolve(x: np.ndarray, layer: ResampleConv2d, pad: int) -> np.ndarray:
    weight = layer.weight.detach().double().numpy()
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    assert layer.bias is not None
    return np.stack([correlate(x, w, mode="valid")[0] for w in weight]) + layer.bias.detach().numpy()[:, None, None]


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1]], ids=str)
@pytest.mark.parametrize(
    "resample, kernel, fused",
    [("up", 3, False), ("up", 1, False), ("down", 3, False), ("down", 1, False), ("down", 3, True)],
)
def test_resampling_convolution(taps: list[int], resample: str, kernel: int, fused: bool) -> None:
    torch.manual_seed(0)
    layer = ResampleConv2d(3, 5, kernel, resample, taps, fused).double()  # type: ignore[arg-type]
    torch.nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    layer.resample_filter /= layer.resample_filter.sum()  # float32 rounding of the taps is not the question here
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    pad = (len(taps) - 1) // 2
    size = {"up": 16, "down": 4}[resample]
    for image, result in zip(x.numpy(), layer(x).detach().numpy(), strict=True):
        if fused:
            expected = low_pass(convolve(image, layer, pad=kernel // 2 + pad), taps, resample, pad=0)
        else:
            expected = convolve(low_pass(image, taps, resample, pad), layer, pad=kernel // 2)
        assert expected.shape == (5, size, size)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6 if len(taps) == 4 else 1e-12)


def test_low_pass_keeps_a_constant_image() -> None:
    """Away from the zero-padded border, averaging and interpolating a constant give it back."""
    for resample in ("up", "down"):
        layer = ResampleConv2d(1, 1, 1, resample, [1, 3, 3, 1])
        torch.nn.init.ones_(layer.weight)
        inner = layer(torch.full((1, 1, 8, 8), 3.0))[..., 1:-1, 1:-1]
        torch.testing.assert_close(inner, torch.full_like(inner, 3.0))


def test_positional_embedding() -> None:
    """Frequencies from 1 down to 1/10000, both ends included; sines first."""
    embedding = PositionalEmbedding(6)(torch.tensor([0.0, 2.0]))
    expected = [math.sin(2), math.sin(0.02), math.sin(2e-4), math.cos(2), math.cos(0.02), math.cos(2e-4)]
    assert embedding[0].tolist() == [0, 0, 0, 1, 1, 1]
    assert embedding[1].tolist() == pytest.approx(expected, abs=1e-6)


def test_fourier_embedding() -> None:
    layer = FourierEmbedding(4)
    layer.freqs.copy_(torch.tensor([0.25, 3.0]))
    half_turn, six_turns = math.pi, 12 * math.pi
    expected = [math.sin(half_turn), math.sin(six_turns), math.cos(half_turn), math.cos(six_turns)]
    assert layer(torch.tensor([2.0]))[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_fourier_frequencies_have_the_papers_scale() -> None:
    torch.manual_seed(0)
    assert FourierEmbedding(8192).freqs.std().item() == pytest.approx(16, rel=0.05)


def test_one_head_attends_as_plain_softmax() -> None:
    """q, k and v alternate along the channels of the checkpoint's ``qkv``."""
    qkv = torch.randn(2, 12, 3, 3, generator=torch.Generator().manual_seed(0))
    q, k, v = (qkv[:, offset::3].flatten(2) for offset in range(3))  # [2, 4, 9] each
    weights = torch.softmax(torch.einsum("ncq,nck->nqk", q, k / math.sqrt(4)), dim=2)
    expected = torch.einsum("nqk,nck->ncq", weights, v).reshape(2, 4, 3, 3)
    torch.testing.assert_close(SelfAttention(1)(qkv), expected)


def run_ncsnpp(network: SongUNet, x: Tensor, c_noise: Tensor) -> Tensor:
    """A forward pass of a tiny NCSN++ written down layer by layer from its weights, without the package's modules."""
    w = {name: value.double() for name, value in network.state_dict().items()}

    def conv(name: str, x: Tensor, padding: int) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=padding)

    def resample(x: Tensor, how: str, pad: int) -> Tensor:
        return torch.from_numpy(np.stack([low_pass(image, [1, 3, 3, 1], how, pad) for image in x.numpy()]))

    def norm(name: str, x: Tensor) -> Tensor:
        groups = x.shape[1] // 4  # fewer than 32 in so small a network
        return F.group_norm(x, groups, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def block(name: str, x: Tensor, how: str | None = None) -> Tensor:
        pre, skip = F.silu(norm(f"{name}.norm0", x)), x
        if how is not None:
            pre, skip = resample(pre, how, pad=1), resample(skip, how, pad=1)
        h = conv(f"{name}.conv0", pre, padding=1)
        h = h + F.linear(embedding, w[f"{name}.affine.weight"], w[f"{name}.affine.bias"])[:, :, None, None]
        h = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", h)), padding=1)
        skip = conv(f"{name}.skip", skip, padding=0) if f"{name}.skip.weight" in w else skip
        x = (h + skip) / math.sqrt(2)
        if f"{name}.qkv.weight" in w:
            attended = SelfAttention(1)(conv(f"{name}.qkv", norm(f"{name}.norm2", x), padding=0))
            x = (x + conv(f"{name}.proj", attended, padding=0)) / math.sqrt(2)
        return x

    phase = 2 * math.pi * c_noise[:, None] * w["map_noise.freqs"]
    embedding = torch.cat([phase.sin(), phase.cos()], dim=1)
    for layer in ("map_layer0", "map_layer1"):
        embedding = F.silu(F.linear(embedding, w[f"{layer}.weight"], w[f"{layer}.bias"]))

    def down(res: str, x: Tensor, image: Tensor) -> Tensor:
        image = resample(conv(f"enc.{res}_aux_residual", image, padding=2), "down", pad=0)
        return (block(f"enc.{res}_down", x, "down") + image) / math.sqrt(2)

    skip0 = conv("enc.8x8_conv", x, padding=1)
    skip1 = block("enc.8x8_block0", skip0)
    skip2 = down("4x4", skip1, image=x)
    skip3 = block("enc.4x4_block0", skip2)
    skip4 = down("2x2", skip3, image=skip2)  # the image's branch goes on from the sum
    skip5 = block("enc.2x2_block0", skip4)

    x = block("dec.2x2_in1", block("dec.2x2_in0", skip5))
    x = block("dec.2x2_block1", torch.cat([block("dec.2x2_block0", torch.cat([x, skip5], dim=1)), skip4], dim=1))
    x = block("dec.4x4_up", x, "up")
    x = block("dec.4x4_block1", torch.cat([block("dec.4x4_block0", torch.cat([x, skip3], dim=1)), skip2], dim=1))
    x = block("dec.8x8_up", x, "up")
    x = block("dec.8x8_block1", torch.cat([block("dec.8x8_block0", torch.cat([x, skip1], dim=1)), skip0], dim=1))
    return conv("dec.8x8_aux_conv", F.silu(norm("dec.8x8_aux_norm", x)), padding=1)


def test_ncsnpp_against_a_forward_pass_by_hand() -> None:
    network = tiny_denoiser(label_dim=0, channels=3, channel_mult=[1, 2, 2], **NCSNPP).model.double()  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(1)
    x, c_noise = torch.randn(2, 3, 8, 8, generator=random).double(), torch.tensor([-1.0, 0.7], dtype=torch.float64)
    with torch.no_grad():
        result, expected = network(x, c_noise), run_ncsnpp(network, x, c_noise)
    assert expected.std() > 0.1
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


def test_published_parameter_count() -> None:
    """EDM's CIFAR-10 network, unconditional, with augmentation labels: DDPM++, all options at their defaults."""
    with torch.device("meta"):
        network = EDMDenoiser((3, 32, 32), options={"augment_dim": 9})
    assert sum(p.numel() for p in network.parameters()) == 55_733_891
    assert network.feature_shapes == [(256, 32, 32), (256, 16, 16), (256, 8, 8)]


def test_label_dropout_drops_in_training_only() -> None:
    network = tiny_denoiser(label_dropout=0.25).model
    labels = torch.eye(3)[[1] * 400]
    c_noise = torch.zeros(400)
    with torch.no_grad():
        kept, dropped = network.embed(c_noise, labels), network.embed(c_noise, None)
        torch.manual_seed(0)
        drawn = network.train().embed(c_noise, labels)
    is_dropped = (drawn - dropped).abs().amax(1) < 1e-6
    is_kept = (drawn - kept).abs().amax(1) < 1e-6
    assert (is_dropped ^ is_kept).all() and (kept - dropped).abs().max() > 0.1
    assert is_dropped.double().mean().item() == pytest.approx(0.25, abs=0.066)  # three standard deviations


def test_a_side_that_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="img_resolution=6 cannot be halved 2 times"):
        SongUNet(6, 1, model_channels=16, channel_mult=[1, 1, 1])

"""Layers and helpers of the published U-Nets, with the parameter names of EDM's checkpoints."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

_Layer = TypeVar("_Layer", bound=nn.Module)

#: Channels of a network at its highest resolution: its group norms have at least 4 in a group.
Channels = Annotated[int, Ge(4), Le(2**14)]
#: Multiples of them, and numbers of blocks.
Multiple = Annotated[int, Ge(1), Le(64)]
#: Initial scale of the last layer of a residual branch, so that a new network is nearly the identity.
NEARLY_ZERO = 1e-5


def group_norm(channels: int, eps: float = 1e-6) -> nn.GroupNorm:
    """At most 32 groups, at least 4 channels in each."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


def _initialise(layer: nn.Linear | nn.Conv2d, scale: float = 1.0) -> None:
    nn.init.xavier_uniform_(layer.weight, gain=scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def levels_of(img_resolution: int, model_channels: int, channel_mult: Sequence[int]) -> list[tuple[int, int]]:
    """Resolution and channels of each level of a U-Net, highest resolution first.

    Raises:
        ValueError: if the resolution is not divisible by the number of halvings.
    """
    if img_resolution % 2 ** (len(channel_mult) - 1):
        raise ValueError(
            f"img_resolution={img_resolution} cannot be halved {len(channel_mult) - 1} times: set data.resolution=... "
            f"to a multiple of {2 ** (len(channel_mult) - 1)}, or shorten network.options.channel_mult"
        )
    return [(img_resolution >> level, model_channels * mult) for level, mult in enumerate(channel_mult)]


def drop_labels(labels: Tensor, probability: float) -> Tensor:
    """One-hot ``labels`` [B, label_dim], each row zeroed with the given probability."""
    return labels * (torch.rand(len(labels), 1, device=labels.device) >= probability)


def with_classes(embedding: Tensor, labels: Tensor | None, label_dim: int) -> Tensor:
    """``embedding`` [B, C] followed by the one-hot ``labels`` [B, label_dim], zeros for None: [B, C + label_dim]."""
    if not label_dim:
        return embedding
    return torch.cat([embedding, embedding.new_zeros(len(embedding), label_dim) if labels is None else labels], 1)


class Linear(nn.Linear):
    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        _initialise(self)


class Conv2d(nn.Conv2d):
    """A convolution with equal input and output size."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, init_scale: float = 1.0) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        _initialise(self, init_scale)


class Resample(nn.Module):
    """Resampling to half or twice the size by a fixed separable low-pass filter with the taps ``resample_filter``.

    [1, 1] is average pooling down and nearest neighbour up.
    """

    resample_filter: Tensor

    def __init__(self, resample: Literal["up", "down"], resample_filter: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("resample_filter", filter_of(resample_filter))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        return low_pass(x, self.resample_filter, self.resample, padding=(self.resample_filter.shape[-1] - 1) // 2)


def filter_of(taps: Sequence[int]) -> Tensor:
    """The separable filter [1, 1, k, k] of ``taps`` [k], with sum 1."""
    # With memory also in a network's outline: operations without memory import torch's compiler, which takes seconds.
    row = torch.as_tensor(taps, dtype=torch.float32, device="cpu")
    return (row.outer(row) / row.sum().square())[None, None]


def low_pass(x: Tensor, taps: Tensor, resample: Literal["up", "down"], padding: int) -> Tensor:
    """``x`` [B, C, H, W] at half or twice the size, by the filter ``taps`` [1, 1, k, k] with stride 2."""
    if taps.shape[-1] == 2:  # the box filter has much faster kernels
        return F.interpolate(x, scale_factor=2) if resample == "up" else F.avg_pool2d(x, 2)
    channels = x.shape[1]
    taps = taps.to(x.dtype)
    if resample == "up":
        return F.conv_transpose2d(
            x, (4 * taps).expand(channels, -1, -1, -1), stride=2, padding=padding, groups=channels
        )
    return F.conv2d(x, taps.expand(channels, -1, -1, -1), stride=2, padding=padding, groups=channels)


class ResampleConv2d(nn.Conv2d):
    """A fixed low-pass filter with stride 2, then a convolution; in the reverse order if ``fused`` (down only).

    ``resample_filter`` lists the taps of the separable filter; [1, 1] is average pooling down and nearest neighbour up.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        resample: Literal["up", "down"],
        resample_filter: Sequence[int],
        fused: bool = False,
    ) -> None:
        assert not (fused and resample == "up")
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        _initialise(self)
        self.register_buffer("resample_filter", filter_of(resample_filter))
        self.resample = resample
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        pad = (self.resample_filter.shape[-1] - 1) // 2
        if self.fused:
            # One padding for both filters: the low-pass filter thus gets convolved values at the border.
            x = F.conv2d(x, self.weight, self.bias, padding=self.kernel_size[0] // 2 + pad)
            return low_pass(x, self.resample_filter, self.resample, padding=0)
        return super().forward(low_pass(x, self.resample_filter, self.resample, padding=pad))


class SelfAttention(nn.Module):
    """Self-attention over all positions, without weights: ``qkv`` [B, 3C, H, W] to [B, C, H, W].

    Each head has 3C / heads consecutive channels, in which q, k and v alternate.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, qkv: Tensor) -> Tensor:
        batch, channels, height, width = qkv.shape
        split = qkv.reshape(batch, self.heads, channels // (3 * self.heads), 3, height * width)
        q, k, v = split.permute(3, 0, 1, 4, 2)  # [B, heads, HW, C / heads] each
        attended = F.scaled_dot_product_attention(q, k, v)
        return attended.transpose(2, 3).reshape(batch, channels // 3, height, width)


def zeroed(layer: _Layer) -> _Layer:
    """The layer with all weights zero, the initialisation of the last one of a branch or of a logit."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


#: Layers in which a pixel depends on all others.
GLOBAL = (nn.GroupNorm, SelfAttention)


class PositionalEmbedding(nn.Module):
    """Sines and cosines of ``c_noise`` [B] at geometric frequencies from 1 down to 1/10000: [B, channels].

    DDPM++ includes the lowest frequency and has the sines first; ADM (``endpoint=False``) excludes it and has the
    cosines first.
    """

    def __init__(self, channels: int, endpoint: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.endpoint = endpoint

    def forward(self, c_noise: Tensor) -> Tensor:
        half = self.channels // 2
        exponent = torch.arange(half, dtype=torch.float32, device=c_noise.device) / (half - self.endpoint)
        phase = c_noise[:, None] * (1 / 10000) ** exponent.to(c_noise.dtype)
        waves = [phase.sin(), phase.cos()]
        return torch.cat(waves if self.endpoint else waves[::-1], dim=1)


class FourierEmbedding(nn.Module):
    """Sines and cosines of ``c_noise`` [B] at fixed random frequencies: [B, channels]."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        # Phases reach thousands of radians: another order of the factors would round to other embeddings than EDM's.
        phase = c_noise[:, None] * (2 * math.pi * self.freqs).to(c_noise.dtype)
        return torch.cat([phase.sin(), phase.cos()], dim=1)

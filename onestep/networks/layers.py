"""Layers that the published U-Nets share, under the parameter names of EDM's checkpoints."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Residual branches end in a layer that is nearly zero, so that a fresh network is nearly the identity.
NEARLY_ZERO = 1e-5


def group_norm(channels: int, eps: float = 1e-6) -> nn.GroupNorm:
    """At most 32 groups, at least 4 channels in each."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


def _initialise(layer: nn.Linear | nn.Conv2d, scale: float = 1.0) -> None:
    nn.init.xavier_uniform_(layer.weight, gain=scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Linear(nn.Linear):
    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        _initialise(self)


class Conv2d(nn.Conv2d):
    """A convolution that keeps the size."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, init_scale: float = 1.0) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        _initialise(self, init_scale)


class ResampleConv2d(nn.Conv2d):
    """A convolution next to a fixed low-pass filter with stride 2: before it or, if ``fused`` (down only), after it.

    ``resample_filter`` lists the taps of the separable filter; [1, 1] is average pooling down and nearest up.
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
        taps = torch.as_tensor(resample_filter, dtype=torch.float32)
        self.register_buffer("resample_filter", (taps.outer(taps) / taps.sum().square())[None, None])
        self.resample = resample
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        pad = (self.resample_filter.shape[-1] - 1) // 2
        if self.fused:
            # Padding for both filters comes first, so that the low-pass filter sees convolved values at the border.
            x = F.conv2d(x, self.weight, self.bias, padding=self.kernel_size[0] // 2 + pad)
            return self._low_pass(x, padding=0)
        return super().forward(self._low_pass(x, padding=pad))

    def _low_pass(self, x: Tensor, padding: int) -> Tensor:
        if self.resample_filter.shape[-1] == 2:  # the box filter, for which there are far faster kernels
            return F.interpolate(x, scale_factor=2) if self.resample == "up" else F.avg_pool2d(x, 2)
        channels = x.shape[1]
        taps = self.resample_filter.to(x.dtype)
        if self.resample == "up":
            taps = (4 * taps).expand(channels, -1, -1, -1)
            return F.conv_transpose2d(x, taps, stride=2, padding=padding, groups=channels)
        return F.conv2d(x, taps.expand(channels, -1, -1, -1), stride=2, padding=padding, groups=channels)


class PositionalEmbedding(nn.Module):
    """Sines and cosines of ``c_noise`` [B] at geometric frequencies: [B, channels]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, c_noise: Tensor) -> Tensor:
        half = self.channels // 2
        exponent = torch.arange(half, dtype=torch.float32, device=c_noise.device) / (half - 1)
        phase = c_noise[:, None] * (1 / 10000) ** exponent.to(c_noise.dtype)
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class FourierEmbedding(nn.Module):
    """Sines and cosines of ``c_noise`` [B] at fixed random frequencies: [B, channels]."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = 2 * math.pi * c_noise[:, None] * self.freqs.to(c_noise.dtype)
        return torch.cat([phase.sin(), phase.cos()], dim=1)

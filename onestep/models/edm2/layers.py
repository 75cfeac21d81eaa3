"""Magnitude-preserving layers (Karras et al. 2024, arXiv 2312.02696), with the parameter names of EDM2's checkpoints.

Each keeps the root mean square of its activations at 1 on average, so that none needs a normalisation of groups.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-4
_SILU_SCALE = 0.596  # root mean square of silu(x) for x ~ N(0, 1)


def normalize(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """``x`` divided by its root mean square over ``dim``, which is computed in float32 at least (eq. 30)."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x / (_EPS + norm * math.sqrt(norm.numel() / x.numel())).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU with an output of magnitude 1 (eq. 81)."""
    return F.silu(x) / _SILU_SCALE


def mp_sum(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """The weighted sum of ``a`` (at a balance of 0) and ``b`` (at 1), of magnitude 1 (eq. 88)."""
    return a.lerp(b, balance) / math.hypot(1 - balance, balance)


def mp_cat(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """``a`` and ``b`` [B, C, H, W] side by side; their shares of the squares are those of ``balance`` (eq. 103)."""
    channels = a.shape[1] + b.shape[1]
    scale = math.sqrt(channels) / math.hypot(1 - balance, balance)
    return torch.cat(
        [a * (scale * (1 - balance) / math.sqrt(a.shape[1])), b * (scale * balance / math.sqrt(b.shape[1]))], dim=1
    )


class MPFourier(nn.Module):
    """Cosines of ``c_noise`` [B] at fixed random frequencies and phases: [B, channels] of magnitude 1 (eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # With memory also in a network's outline, see onestep.models.edm.layers.filter_of.
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels, device="cpu"))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels, device="cpu"))

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = c_noise[:, None] * self.freqs.to(c_noise.dtype) + self.phases.to(c_noise.dtype)
        return phase.cos() * math.sqrt(2)


class MPConv(nn.Module):
    """A convolution, or for a ``kernel`` of 0 a linear layer, whose weights enter by their directions alone (eq. 47).

    Training keeps them at magnitude 1, see :meth:`force_magnitude`. The linear layers, which see the embedding, are
    computed in its precision also under autocast, as in EDM2.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *([kernel, kernel] if kernel else [])))

    @torch.no_grad()
    def force_magnitude(self) -> None:
        """Forced weight normalisation (eq. 66): every output's weights are set to magnitude 1, in place.

        Else they grow during a training, and a step of the same length turns them ever less.
        """
        # FSDP2 shards the outputs, so that each process has all weights of its own. (DTensor is a slow import.)
        to_local = getattr(self.weight, "to_local", None)
        weight: Tensor = self.weight if to_local is None else to_local()
        if weight.numel():
            weight.copy_(normalize(weight, tuple(range(1, weight.ndim))))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        weight = normalize(weight, tuple(range(1, weight.ndim))) * (gain / math.sqrt(weight[0].numel()))
        if weight.ndim == 4:
            return F.conv2d(x, weight.to(x.dtype), padding=weight.shape[-1] // 2)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, weight.to(x.dtype))

"""The U-Net of EDM2 (Karras et al. 2024, arXiv 2312.02696, figure 21, "config G"), at 64 pixels or for latents.

Parameters have the names and shapes of EDM2's published checkpoints.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, Len
from torch import Tensor, nn

from onestep.models.edm.layers import Channels, Multiple, SelfAttention, levels_of
from onestep.models.edm.unet import UNet
from onestep.models.edm2.layers import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize
from onestep.ranges import Classes, Decay, Fraction, Positive, Side, Width


class Block(nn.Module):
    """A residual block of the encoder or the decoder, with optional resampling and self-attention.

    The encoder's blocks begin with a normalisation of each pixel. Attention is by cosine similarity: queries, keys and
    values are normalised. It has one head per ``channels_per_head`` channels, none below.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        flavor: Literal["enc", "dec"],
        dropout: float,
        res_balance: float,
        attn_balance: float,
        clip_act: float | None,
        channels_per_head: int,
        attention: bool = False,
        resample: Literal["up", "down"] | None = None,
    ) -> None:
        super().__init__()
        self.flavor, self.resample, self.clip_act = flavor, resample, clip_act
        self.dropout = nn.Dropout(dropout)
        self.in_channels, self.res_balance, self.attn_balance = in_channels, res_balance, attn_balance
        self.heads = out_channels // channels_per_head if attention else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out_channels if flavor == "enc" else in_channels, out_channels, 3)
        self.emb_linear = MPConv(embedding_channels, out_channels, 0)
        self.conv_res1 = MPConv(out_channels, out_channels, 3)
        self.conv_skip = MPConv(in_channels, out_channels, 1) if in_channels != out_channels else None
        if self.heads:
            self.attend = SelfAttention(self.heads)
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1)
            self.attn_proj = MPConv(out_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.resample is not None:
            x = F.avg_pool2d(x, 2) if self.resample == "down" else F.interpolate(x, scale_factor=2)
        if self.flavor == "enc":
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), dim=1)
        residual = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(embedding, self.emb_gain) + 1
        residual = mp_silu(residual * scale[:, :, None, None].to(residual.dtype))
        residual = self.conv_res1(self.dropout(residual))
        if self.flavor == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, residual, self.res_balance)
        if self.heads:
            qkv = self.attn_qkv(x)
            qkv = normalize(qkv.unflatten(1, (self.heads, -1, 3)), dim=2).flatten(1, 3)
            x = mp_sum(x, self.attn_proj(self.attend(qkv)), self.attn_balance)
        return x if self.clip_act is None else x.clamp(-self.clip_act, self.clip_act)


class EDM2UNet(UNet):
    """EDM2's U-Net. The defaults are those of EDM2-S; the sizes differ by ``model_channels`` and dropout alone.

    Args:
        img_resolution: height and width of the images or latents.
        img_channels: channels of the images or latents.
        label_dim: number of classes; 0 for an unconditional network.
        model_channels: channels at the highest resolution.
        channel_mult: multiple of ``model_channels`` at each resolution, highest first.
        channel_mult_noise: that of the embedded noise level; None for the first of ``channel_mult``.
        channel_mult_emb: that of the embedding; None for the largest of ``channel_mult``.
        num_blocks: residual blocks per resolution.
        attn_resolutions: resolutions with self-attention.
        dropout: dropout of the residual branches in train mode.
        logvar_channels: frequencies of the uncertainty's embedding, see :meth:`log_variance`; 0 for no uncertainty.
        label_balance, concat_balance, res_balance, attn_balance: shares of the classes in the embedding, of skip
            connections, of residual branches and of attention in their sums.
        clip_act: largest absolute activation after a block; None for no limit.
        channels_per_head: channels per attention head.
        out_channels: channels of the output; None for ``img_channels``.
    """

    level_layer = "emb_noise"

    def __init__(
        self,
        img_resolution: Side,
        img_channels: Width,
        label_dim: Classes = 0,
        model_channels: Channels = 192,
        channel_mult: Annotated[Sequence[Multiple], Len(1, 16)] = (1, 2, 3, 4),
        channel_mult_noise: Multiple | None = None,
        channel_mult_emb: Multiple | None = None,
        num_blocks: Multiple = 3,
        attn_resolutions: Sequence[Side] = (16, 8),
        dropout: Decay = 0.0,
        logvar_channels: Annotated[int, Ge(0), Le(2**14)] = 128,
        label_balance: Fraction = 0.5,
        concat_balance: Fraction = 0.5,
        res_balance: Fraction = 0.3,
        attn_balance: Fraction = 0.3,
        clip_act: Positive | None = 256.0,
        channels_per_head: Width = 64,
        out_channels: Width | None = None,
    ) -> None:
        super().__init__()
        levels = levels_of(img_resolution, model_channels, channel_mult)
        self.label_balance, self.concat_balance = label_balance, concat_balance
        noise_channels = model_channels * (channel_mult_noise or channel_mult[0])
        embedding_channels = model_channels * (channel_mult_emb or max(channel_mult))
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise_channels)
        self.emb_noise = MPConv(noise_channels, embedding_channels, 0)
        self.emb_label = MPConv(label_dim, embedding_channels, 0) if label_dim else None
        block = partial(
            Block, embedding_channels=embedding_channels, dropout=dropout, res_balance=res_balance,
            attn_balance=attn_balance, clip_act=clip_act, channels_per_head=channels_per_head,
        )  # fmt: skip
        shape = levels, num_blocks, set(attn_resolutions)
        channels = levels[0][1]
        first = MPConv(img_channels + 1, channels, 3)
        encoded = self.build_encoder(*shape, first, channels, partial(block, flavor="enc"))
        self.build_decoder(*shape, encoded, partial(block, flavor="dec"))
        self.out_conv = MPConv(channels, out_channels or img_channels, 3)
        if logvar_channels:
            self.logvar_fourier = MPFourier(logvar_channels)
            self.logvar_linear = MPConv(logvar_channels, 1, 0)

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None = None) -> Tensor:
        embedding = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            classes = self.emb_label.weight.shape[1]
            if labels is None:
                labels = c_noise.new_zeros(1, classes)
            embedding = mp_sum(
                embedding, self.emb_label(labels.to(embedding.dtype) * math.sqrt(classes)), self.label_balance
            )
        return mp_silu(embedding)

    def encode(self, x: Tensor, embedding: Tensor, stop: int | None = None) -> list[Tensor]:
        # Layers have no bias.
        return super().encode(torch.cat([x, torch.ones_like(x[:, :1])], dim=1), embedding, stop)

    def decode(self, encoded: Sequence[Tensor], embedding: Tensor) -> Tensor:
        skips = list(encoded)
        x = skips[-1]
        for layer in self.dec.values():
            if layer.in_channels != x.shape[1]:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = layer(x, embedding)
        return self.out_conv(x, self.out_gain)

    def log_variance(self, c_noise: Tensor) -> Tensor:
        """The uncertainty u [B] at ``c_noise`` [B], the logarithm of the expected weighted loss (eq. 21)."""
        return self.logvar_linear(self.logvar_fourier(c_noise))[:, 0]

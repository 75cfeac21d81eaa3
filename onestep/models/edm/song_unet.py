"""The U-Net of Song et al. 2021 (score_sde, arXiv 2011.13456) as EDM configures it (arXiv 2206.00364, table 7).

One class covers DDPM++ (positional embedding, standard encoder) and NCSN++ (Fourier embedding, residual encoder, wider
resampling filter). Parameters have the names and shapes of EDM's published checkpoints.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn

from onestep.models.edm.layers import (
    NEARLY_ZERO,
    Channels,
    Conv2d,
    FourierEmbedding,
    Linear,
    Multiple,
    PositionalEmbedding,
    ResampleConv2d,
    SelfAttention,
    drop_labels,
    group_norm,
    levels_of,
)
from onestep.models.edm.unet import UNet
from onestep.ranges import Classes, Count, Decay, Side, Width


class UNetBlock(nn.Module):
    """A residual block with optional self-attention; it adds the embedding between its convolutions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float,
        attention: bool = False,
        resample: Literal["up", "down"] | None = None,
        resample_filter: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.dropout = nn.Dropout(dropout)
        self.norm0 = group_norm(in_channels)
        self.conv0: nn.Module = Conv2d(in_channels, out_channels, 3)
        self.affine = Linear(embedding_channels, out_channels)
        self.norm1 = group_norm(out_channels)
        self.conv1 = Conv2d(out_channels, out_channels, 3, init_scale=NEARLY_ZERO)
        self.skip: nn.Module = nn.Identity()
        if resample is not None:
            self.conv0 = ResampleConv2d(in_channels, out_channels, 3, resample, resample_filter)
            self.skip = ResampleConv2d(in_channels, out_channels, 1, resample, resample_filter)
        elif in_channels != out_channels:
            self.skip = Conv2d(in_channels, out_channels, 1)
        self.attend = SelfAttention(1) if attention else None
        if attention:
            self.norm2 = group_norm(out_channels)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1, init_scale=math.sqrt(0.2))
            self.proj = Conv2d(out_channels, out_channels, 1, init_scale=NEARLY_ZERO)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        residual = self.conv0(F.silu(self.norm0(x)))
        residual = F.silu(self.norm1(residual + self.affine(embedding)[:, :, None, None]))
        residual = self.conv1(self.dropout(residual))
        # Dividing each sum of two branches by sqrt(2) keeps the variance constant over the depth.
        x = (self.skip(x) + residual) * math.sqrt(0.5)
        if self.attend is not None:
            x = (x + self.proj(self.attend(self.qkv(self.norm2(x))))) * math.sqrt(0.5)
        return x


class SongUNet(UNet):
    """DDPM++ and NCSN++. The defaults are DDPM++'s; NCSN++ is ``embedding_type="fourier", encoder_type="residual",
    channel_mult_noise=2, resample_filter=[1, 3, 3, 1]``.

    Args:
        img_resolution: height and width of the images.
        img_channels: channels of the images.
        label_dim: number of classes; 0 for an unconditional network.
        augment_dim: size of EDM's augmentation labels; 0 for none.
        model_channels: channels at the highest resolution.
        channel_mult: multiple of ``model_channels`` at each resolution, highest first.
        channel_mult_emb: multiple of ``model_channels`` of the embedding.
        num_blocks: residual blocks per resolution.
        attn_resolutions: resolutions with self-attention.
        dropout: dropout of the residual branches in train mode.
        label_dropout: probability of zeroing a sample's class label in train mode.
        out_channels: channels of the output; None for ``img_channels``.
    """

    def __init__(
        self,
        img_resolution: Side,
        img_channels: Width,
        label_dim: Classes = 0,
        augment_dim: Classes = 0,
        model_channels: Channels = 128,
        channel_mult: Annotated[Sequence[Multiple], Len(1, 16)] = (2, 2, 2),
        channel_mult_emb: Multiple = 4,
        num_blocks: Multiple = 4,
        attn_resolutions: Sequence[Side] = (16,),
        dropout: Decay = 0.10,
        label_dropout: Decay = 0.0,
        embedding_type: Literal["positional", "fourier"] = "positional",
        channel_mult_noise: Multiple = 1,
        encoder_type: Literal["standard", "residual"] = "standard",
        resample_filter: Annotated[Sequence[Count], Len(1, 64)] = (1, 1),
        out_channels: Width | None = None,
    ) -> None:
        super().__init__()
        levels = levels_of(img_resolution, model_channels, channel_mult)
        self.label_dropout = label_dropout
        noise_channels = model_channels * channel_mult_noise
        embedding_channels = model_channels * channel_mult_emb
        embedding = PositionalEmbedding if embedding_type == "positional" else FourierEmbedding
        self.map_noise: nn.Module = embedding(noise_channels)
        self.map_label = Linear(label_dim, noise_channels) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, embedding_channels)
        self.map_layer1 = Linear(embedding_channels, embedding_channels)
        block = partial(
            UNetBlock, embedding_channels=embedding_channels, dropout=dropout, resample_filter=resample_filter
        )
        shape = levels, num_blocks, set(attn_resolutions)
        first = Conv2d(img_channels, model_channels, 3)
        widths = [img_channels]  # of the images and their shortcuts

        def shortcut(channels: int) -> nn.Module:
            widths.append(channels)
            return ResampleConv2d(widths[-2], channels, 3, "down", resample_filter, fused=True)

        shortcuts = shortcut if encoder_type == "residual" else None
        encoded = self.build_encoder(*shape, first, model_channels, block, shortcuts)
        self.build_decoder(*shape, encoded, block, last_attends=True)
        res, channels = levels[0]
        self.dec[f"{res}x{res}_aux_norm"] = group_norm(channels)
        self.dec[f"{res}x{res}_aux_conv"] = Conv2d(channels, out_channels or img_channels, 3, init_scale=NEARLY_ZERO)

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None = None) -> Tensor:
        embedding = self.map_noise(c_noise)
        if self.map_label is not None and labels is not None:
            if self.training and self.label_dropout:
                labels = drop_labels(labels, self.label_dropout)
            # The one-hot vector is scaled to unit variance per entry.
            embedding = embedding + self.map_label(labels * math.sqrt(self.map_label.in_features))
        elif self.map_label is not None:
            embedding = embedding + self.map_label.bias
        if self.map_augment is not None and augment_labels is not None:
            embedding = embedding + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

    def encode(self, x: Tensor, embedding: Tensor, stop: int | None = None) -> list[Tensor]:
        outputs: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            if isinstance(layer, UNetBlock):
                x = layer(x, embedding)
            elif name.endswith("aux_residual"):
                x = aux = (outputs.pop() + layer(aux)) * math.sqrt(0.5)
            else:
                x = layer(x)
            outputs.append(x)
            if len(outputs) == stop:
                break
        return outputs

    def decode(self, encoded: Sequence[Tensor], embedding: Tensor) -> Tensor:
        skips = list(encoded)
        x = skips[-1]
        for layer in self.dec.values():
            if isinstance(layer, UNetBlock):
                if layer.in_channels != x.shape[1]:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, embedding)
            else:
                x = layer(F.silu(x) if isinstance(layer, Conv2d) else x)
        return x

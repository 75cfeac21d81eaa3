"""The U-Net of Dhariwal and Nichol 2021 (ADM, arXiv 2105.05233) as EDM configures it for ImageNet-64.

Parameters have the names and shapes of EDM's published checkpoints and of DMD2's.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn

from onestep.models.edm.layers import (
    Channels,
    Multiple,
    PositionalEmbedding,
    Resample,
    ResampleConv2d,
    SelfAttention,
    drop_labels,
    group_norm,
    levels_of,
    zeroed,
)
from onestep.models.edm.unet import UNet
from onestep.ranges import Classes, Decay, Side, Width

_CHANNELS_PER_HEAD = 64
_BOX = (1, 1)  # average pooling down, nearest neighbour up


class ADMBlock(nn.Module):
    """A residual block with adaptive group normalisation (arXiv 2105.05233, sec. 3) and optional self-attention.

    The embedding scales and shifts the second normalisation. Attention has one head per 64 channels, none below 64.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float,
        attention: bool = False,
        resample: Literal["up", "down"] | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.dropout = nn.Dropout(dropout)
        self.norm0 = group_norm(in_channels, eps=1e-5)
        self.conv0: nn.Module = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.affine = nn.Linear(embedding_channels, 2 * out_channels)
        self.norm1 = group_norm(out_channels, eps=1e-5)
        self.conv1 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip: nn.Module = nn.Identity()
        if resample is not None:
            assert in_channels == out_channels
            self.conv0 = ResampleConv2d(in_channels, out_channels, 3, resample, _BOX)
            self.conv0.reset_parameters()  # torch's initialisation, as in ADM's other layers
            self.skip = Resample(resample, _BOX)
        elif in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1)
        heads = out_channels // _CHANNELS_PER_HEAD if attention else 0
        self.attend = SelfAttention(heads) if heads else None
        if self.attend is not None:
            self.norm2 = group_norm(out_channels, eps=1e-5)
            self.qkv = nn.Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = zeroed(nn.Conv2d(out_channels, out_channels, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        residual = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        residual = F.silu(torch.addcmul(shift, self.norm1(residual), scale + 1))
        x = self.skip(x) + self.conv1(self.dropout(residual))
        if self.attend is not None:
            x = x + self.proj(self.attend(self.qkv(self.norm2(x))))
        return x


class DhariwalUNet(UNet):
    """The ADM U-Net. The defaults are those of EDM's ImageNet-64 network.

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
        model_channels: Channels = 192,
        channel_mult: Annotated[Sequence[Multiple], Len(1, 16)] = (1, 2, 3, 4),
        channel_mult_emb: Multiple = 4,
        num_blocks: Multiple = 3,
        attn_resolutions: Sequence[Side] = (32, 16, 8),
        dropout: Decay = 0.10,
        label_dropout: Decay = 0.0,
        out_channels: Width | None = None,
    ) -> None:
        super().__init__()
        levels = levels_of(img_resolution, model_channels, channel_mult)
        self.label_dropout = label_dropout
        embedding_channels = model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, embedding_channels)
        self.map_layer1 = nn.Linear(embedding_channels, embedding_channels)
        self.map_label = nn.Linear(label_dim, embedding_channels, bias=False) if label_dim else None
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)  # its input is a one-hot vector
        block = partial(ADMBlock, embedding_channels=embedding_channels, dropout=dropout)
        shape = levels, num_blocks, set(attn_resolutions)
        channels = levels[0][1]
        first = nn.Conv2d(img_channels, channels, 3, padding=1)
        encoded = self.build_encoder(*shape, first, channels, block)
        self.build_decoder(*shape, encoded, block)
        self.out_norm = group_norm(channels, eps=1e-5)
        self.out_conv = zeroed(nn.Conv2d(channels, out_channels or img_channels, 3, padding=1))

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None = None) -> Tensor:
        embedding = self.map_noise(c_noise)
        if self.map_augment is not None and augment_labels is not None:
            embedding = embedding + self.map_augment(augment_labels)
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        if self.map_label is not None and labels is not None:
            if self.training and self.label_dropout:
                labels = drop_labels(labels, self.label_dropout)
            embedding = embedding + self.map_label(labels)
        return F.silu(embedding)

    def decode(self, encoded: Sequence[Tensor], embedding: Tensor) -> Tensor:
        skips = list(encoded)
        x = skips[-1]
        for layer in self.dec.values():
            if layer.in_channels != x.shape[1]:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, embedding)
        return self.out_conv(F.silu(self.out_norm(x)))

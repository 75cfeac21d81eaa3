"""The U-Net of Song et al. 2021 (score_sde, arXiv 2011.13456) as EDM configures it (arXiv 2206.00364, table 7).

One class covers DDPM++ (positional embedding, standard encoder) and NCSN++ (Fourier embedding, residual encoder, wider
resampling filter). Parameters have the names and shapes of EDM's published checkpoints.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

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
    attend,
    drop_labels,
    group_norm,
    levels_of,
)
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
        self.attention = attention
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
        if self.attention:
            x = (x + self.proj(attend(self.qkv(self.norm2(x)), heads=1))) * math.sqrt(0.5)
        return x


class SongUNet(nn.Module):
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
        block: dict[str, Any] = {"embedding_channels": embedding_channels, "dropout": dropout}
        attends = set(attn_resolutions)
        skip_channels = self._build_encoder(
            levels,
            img_channels,
            model_channels,
            num_blocks,
            attends,
            encoder_type,
            resample_filter,
            block,
        )
        #: The encoder's last output at each resolution, the features of discriminators: positions and shapes.
        self.feature_layers = tuple(range(num_blocks, len(skip_channels), num_blocks + 1))
        self.feature_shapes = [(channels, res, res) for res, channels in levels]
        self._build_decoder(
            levels, out_channels or img_channels, skip_channels, num_blocks, attends, resample_filter, block
        )

    def _build_encoder(
        self,
        levels: list[tuple[int, int]],
        img_channels: int,
        channels: int,
        num_blocks: int,
        attends: set[int],
        encoder_type: Literal["standard", "residual"],
        resample_filter: Sequence[int],
        block: dict[str, Any],
    ) -> list[int]:
        """Build ``self.enc``; returns the channels of its layers' outputs."""
        self.enc = nn.ModuleDict()
        aux_channels = img_channels
        outputs: list[int] = []
        for res, out_channels in levels:
            if res == levels[0][0]:
                self.enc[f"{res}x{res}_conv"] = Conv2d(img_channels, channels, 3)
            else:
                self.enc[f"{res}x{res}_down"] = UNetBlock(
                    channels, channels, resample="down", resample_filter=resample_filter, **block
                )
                if encoder_type == "residual":
                    self.enc[f"{res}x{res}_aux_residual"] = ResampleConv2d(
                        aux_channels, channels, 3, "down", resample_filter, fused=True
                    )
                    aux_channels = channels
            outputs.append(channels)
            for index in range(num_blocks):
                self.enc[f"{res}x{res}_block{index}"] = UNetBlock(
                    channels, out_channels, attention=res in attends, **block
                )
                channels = out_channels
                outputs.append(channels)
        return outputs

    def _build_decoder(
        self,
        levels: list[tuple[int, int]],
        final_channels: int,
        skip_channels: list[int],
        num_blocks: int,
        attends: set[int],
        resample_filter: Sequence[int],
        block: dict[str, Any],
    ) -> None:
        """Build ``self.dec``, whose layers use the encoder's outputs in reverse order."""
        self.dec = nn.ModuleDict()
        channels = skip_channels[-1]
        for res, out_channels in reversed(levels):
            if res == levels[-1][0]:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(channels, channels, attention=True, **block)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(channels, channels, **block)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(
                    channels, channels, resample="up", resample_filter=resample_filter, **block
                )
            for index in range(num_blocks + 1):
                attention = index == num_blocks and res in attends
                self.dec[f"{res}x{res}_block{index}"] = UNetBlock(
                    channels + skip_channels.pop(), out_channels, attention=attention, **block
                )
                channels = out_channels
        self.dec[f"{res}x{res}_aux_norm"] = group_norm(channels)
        self.dec[f"{res}x{res}_aux_conv"] = Conv2d(channels, final_channels, 3, init_scale=NEARLY_ZERO)

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None = None) -> Tensor:
        """The embedding [B, C] of ``c_noise`` [B], one-hot ``labels`` [B, label_dim] and ``augment_labels``.

        No labels are the zero vector, as after label dropout.
        """
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
        """The outputs of the encoder's layers up to layer ``stop`` (exclusive), in order; the last is the deepest."""
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
        """The network's output [B, C, H, W] for the outputs of :meth:`encode`."""
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

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """The raw output [B, C, H, W] at ``x`` [B, C, H, W] and ``c_noise`` [B]; see :meth:`embed` for the labels."""
        embedding = self.embed(c_noise, labels, augment_labels)
        return self.decode(self.encode(x, embedding), embedding)

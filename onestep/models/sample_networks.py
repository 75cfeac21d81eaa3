"""Discriminators that are networks of their own: what they see is the noised sample itself."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.models.discriminator import Discriminator, Shape, largest_groups
from onestep.models.edm.layers import PositionalEmbedding, with_classes, zeroed
from onestep.noise import expand_like
from onestep.ranges import Classes, Count, Positive, Width, checked

_WAVES = 32  # of a noise level


class NoisedSamples(nn.Module):
    """The host of a discriminator that is a network of its own: its features are the noised samples themselves."""

    def forward(self, x_sigma: Tensor, sigma: Tensor, condition: Condition, **options: Any) -> tuple[Tensor, ...]:
        """``x_sigma`` [B, C, H, W] and the condition's image, if there is one, as the levels of features."""
        return (x_sigma, condition["image"]) if "image" in condition else (x_sigma,)


NOISED_SAMPLES = NoisedSamples()


class SampleNetwork(Discriminator):
    """A discriminator on noised samples.

    Args:
        label_dim: number of classes; 0 for none.
        features_from: ``"samples"``.
        residual_std: standard deviation of the samples' difference from the condition's image, which it sees in place
            of the samples, as a network with ``image_condition="residual"`` does; None for the samples. In samples of 1
            it hardly ever finds a difference of 0.1.
    """

    def __init__(self, label_dim: int, features_from: Literal["samples"], residual_std: float | None) -> None:
        super().__init__()
        self.noise = PositionalEmbedding(_WAVES)
        self.label_dim, self.features_from, self.residual_std = label_dim, features_from, residual_std

    @property
    def embedded(self) -> int:
        """Numbers of :meth:`embedding_of` for each sample."""
        return _WAVES + self.label_dim

    def embedding_of(self, sigma: Tensor, condition: Condition) -> Tensor:
        """Waves of the noise levels ``sigma`` [B], and the classes: [B, embedded]."""
        return with_classes(self.noise(4 * sigma.log()), condition.get("labels"), self.label_dim)

    def scaled(self, features: Sequence[Tensor], sigma: Tensor) -> list[Tensor]:
        """The sample, or its difference from the image, scaled to at most unit variance; then the image, if any.

        Args:
            features: of :class:`NoisedSamples`, the first at the levels ``sigma`` [B].
        """
        x, *image = features
        if self.residual_std is not None:
            x = x - image[0]
        std = 1.0 if self.residual_std is None else self.residual_std
        return [x / expand_like((std**2 + sigma**2).sqrt(), x), *image]


@checked
class ConvolutionalNetwork(SampleNetwork):
    """One logit from a network of its own: convolutions of stride 2 on the noised sample, modulated by level and class.

    A layer is a 4x4 convolution of stride 2, a group norm (but for the first layer), a scale and a shift by the
    embedding of the noise level and the class, and SiLU. It has twice the channels of the one before. The logit is
    linear in the last layer's outputs, or in their means over the positions, by weights of its own and by the projected
    embedding (Miyato and Koyama 2018, arXiv 1802.05637). It starts at 0.

    With means and few layers it compares small patches and not where they are, as PatchGAN (arXiv 1611.07004) does.

    Args:
        shapes: the shape (C, H, W) of the samples, then that of the condition's image, if it sees one: it follows the
            sample's channels.
        label_dim: number of classes; 0 for none.
        features_from: ``"samples"``.
        channels: of the first layer.
        embedding: width of the embedding.
        layers: their number; None for as many as lead to sides of at most 4.
        pooled: the means over the positions.
        residual_std: see :class:`SampleNetwork`.

    Raises:
        ValueError: if a side of the samples is less than 4, or too short for the layers.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        label_dim: Classes,
        features_from: Literal["samples"],
        channels: Width,
        embedding: Width,
        layers: Count | None,
        pooled: bool,
        residual_std: Positive | None = None,
    ) -> None:
        super().__init__(label_dim, features_from, residual_std)
        _, height, width = shapes[0]
        inputs = sum(shape[0] for shape in shapes)
        if min(height, width) < max(4, 2 ** (layers or 0)):
            raise ValueError(
                f"discriminator.head: {height}x{width} samples are too narrow for strided convolutions"
                + (f" in layers={layers}: use fewer" if layers and min(height, width) >= 4 else "")
            )
        self.pooled = pooled
        first = nn.Linear(self.embedded, embedding)
        self.embed = nn.Sequential(first, nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.layers, self.modulations = nn.ModuleList(), nn.ModuleList()
        while len(self.layers) < (layers or 1) or (layers is None and max(height, width) > 4):
            layer: nn.Module = nn.Conv2d(inputs, channels, 4, stride=2, padding=1)
            if self.layers:
                layer = nn.Sequential(layer, nn.GroupNorm(largest_groups(channels, channels // 16), channels))
            self.layers.append(layer)
            self.modulations.append(nn.Linear(embedding, 2 * channels))
            inputs, channels = channels, 2 * channels
            height, width = height // 2, width // 2
        outputs = inputs if pooled else inputs * height * width
        self.logit, self.projection = zeroed(nn.Linear(outputs, 1)), zeroed(nn.Linear(embedding, outputs))

    def forward(self, features: Sequence[Tensor], sigma: Tensor, condition: Condition) -> Tensor:
        x = torch.cat(self.scaled(features, sigma), 1)
        embedding = self.embed(self.embedding_of(sigma, condition))
        for layer, modulation in zip(self.layers, self.modulations, strict=True):
            scale, shift = modulation(embedding)[:, :, None, None].chunk(2, 1)
            x = F.silu(layer(x) * (1 + scale) + shift)
        x = x.mean((2, 3)) if self.pooled else x.flatten(1)
        projected = (self.projection(embedding) * x).sum(1, keepdim=True) / math.sqrt(x.shape[1])
        return (self.logit(x) + projected).float()

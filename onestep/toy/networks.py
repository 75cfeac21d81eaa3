"""Raw networks for points [B, C, 1, 1] instead of images, to compare training with theory."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.models.discriminator import Shape
from onestep.models.edm.layers import PositionalEmbedding, with_classes, zeroed
from onestep.models.sample_networks import SampleNetwork
from onestep.noise import expand_like
from onestep.ranges import Classes, Positive, Side, Width, checked

Depth = Annotated[int, Ge(0), Le(1000)]


def are_points(samples: Tensor) -> bool:
    """True if ``samples`` [B, C, H, W] are points, [B, C, 1, 1]."""
    return samples.shape[2:] == (1, 1)


class MLP(nn.Module):
    """A residual multilayer perceptron in place of a U-Net. Its features are the output of the first half.

    Its inputs are the coordinates with their sines and cosines. Without these it learns functions that are not smooth
    slowly (Tancik et al. 2020, arXiv 2006.10739).

    Args:
        img_resolution: 1.
        img_channels: the points' dimension.
        label_dim: number of classes; 0 for none.
        width: units per layer.
        depth: number of residual layers before the features, and of those after them.
        out_channels: dimension of the output; None for ``img_channels``.
    """

    feature_layers = (0,)
    level_layer = "embedding"
    frequencies = (2.0, 4.0, 8.0)  # per unit of the input, whose variance is about 1

    def __init__(
        self, img_resolution: Side, img_channels: Width, label_dim: Classes = 0, width: Width = 128, depth: Depth = 2,
        out_channels: Width | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_points(img_resolution)
        self.feature_shapes = [(width, 1, 1)]
        self.noise = PositionalEmbedding(32)
        self.embedding = nn.Linear(32 + label_dim, width)
        self.label_dim = label_dim
        self.input = nn.Linear(img_channels * (1 + 2 * len(self.frequencies)), width)
        self.encoder = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.decoder = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.output = nn.Linear(width, out_channels or img_channels)

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None = None) -> Tensor:
        """The embedding [B, width] of ``c_noise`` [B] and one-hot ``labels`` [B, label_dim] or None."""
        return self.embedding(with_classes(self.noise(16 * c_noise), labels, self.label_dim))

    def encode(self, x: Tensor, embedding: Tensor, stop: int | None = None) -> list[Tensor]:
        """The features [B, width, 1, 1], the encoder's only output."""
        x = x.flatten(1)
        waves = [wave(frequency * x) for frequency in self.frequencies for wave in (torch.sin, torch.cos)]
        return [residual_layers(self.encoder, self.input(torch.cat([x, *waves], 1)), embedding)[:, :, None, None]]

    def decode(self, encoded: Sequence[Tensor], embedding: Tensor) -> Tensor:
        """The network's output [B, C, 1, 1]."""
        hidden = residual_layers(self.decoder, encoded[-1].flatten(1), embedding)
        return self.output(F.silu(hidden))[:, :, None, None]


class Affine(nn.Module):
    """``matrix x + offset`` at every noise level. As a generator, ``m + A z``, whose distribution is known.

    It is initialised to zero, so that only the preconditioning's skip connection remains.

    Args:
        img_resolution: 1.
        img_channels: the points' dimension.
        label_dim: must be 0.
        out_channels: dimension of the output; None for ``img_channels``.
    """

    feature_shapes: Sequence[tuple[int, int, int]] = ()  # no features
    level_layer = None  # nor an embedding

    def __init__(
        self, img_resolution: Side, img_channels: Width, label_dim: Classes = 0, out_channels: Width | None = None
    ) -> None:
        super().__init__()
        _check_points(img_resolution)
        if label_dim:
            raise ValueError(f"an affine network has no classes: expected label_dim=0, got label_dim={label_dim}")
        self.map = zeroed(nn.Linear(img_channels, out_channels or img_channels))

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None = None) -> Tensor:
        """``c_noise`` itself, which is unused."""
        return c_noise

    def encode(self, x: Tensor, embedding: Tensor, stop: int | None = None) -> list[Tensor]:
        """The input itself."""
        return [x]

    def decode(self, encoded: Sequence[Tensor], embedding: Tensor) -> Tensor:
        """The network's output [B, C, 1, 1]."""
        return self.map(encoded[-1].flatten(1))[:, :, None, None]


@checked
class PointNetwork(SampleNetwork):
    """One logit from a network of its own: a residual multilayer perceptron on the noised point.

    Its inputs are the coordinates, scaled to at most unit variance, with sines and cosines of them in data units. Noise
    of level sigma multiplies the wave of frequency k of a density by ``exp(-(k sigma)^2 / 2)``: so are the inputs, of
    which only waves that the noise has not blurred remain. The logit starts at 0.

    Args:
        shapes: the shape (C, 1, 1) of the points, then that of the condition's image, if it sees one.
        label_dim: number of classes; 0 for none.
        features_from: ``"samples"``.
        width: units per layer.
        depth: number of residual layers.
        residual_std: see :class:`onestep.models.sample_networks.SampleNetwork`; the waves are of the points.

    Raises:
        ValueError: for samples that are not points.
    """

    frequencies = (2.0, 4.0, 8.0, 16.0, 32.0)  # radians per data unit: waves longer than 0.2, as the data's spread is 1

    def __init__(
        self,
        shapes: Sequence[Shape],
        label_dim: Classes,
        features_from: Literal["samples"],
        width: Width,
        depth: Depth,
        residual_std: Positive | None = None,
    ) -> None:
        super().__init__(label_dim, features_from, residual_std)
        channels, *sides = shapes[0]
        of_condition = sum(shape[0] for shape in shapes[1:])
        if sides != [1, 1]:
            raise ValueError(f"discriminator=points takes points, [C, 1, 1], got samples of {[*shapes[0]]}")
        self.embedding = nn.Linear(self.embedded, width)
        self.input = nn.Linear(channels * (1 + 2 * len(self.frequencies)) + of_condition, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.logit = zeroed(nn.Linear(width, 1))

    def forward(self, features: Sequence[Tensor], sigma: Tensor, condition: Condition) -> Tensor:
        x = features[0].flatten(1)
        inputs = [one.flatten(1) for one in self.scaled(features, sigma)]
        for frequency in self.frequencies:
            visible = expand_like((-((frequency * sigma) ** 2) / 2).exp(), x)
            inputs += [visible * (frequency * x).sin(), visible * (frequency * x).cos()]
        embedding = self.embedding(self.embedding_of(sigma, condition))
        hidden = residual_layers(self.layers, self.input(torch.cat(inputs, 1)), embedding)
        return self.logit(F.silu(hidden)).float()


def residual_layers(layers: nn.ModuleList, hidden: Tensor, embedding: Tensor) -> Tensor:
    """``hidden`` [B, width] after the ``layers``, each of which adds a function of it and of the ``embedding``."""
    for layer in layers:
        hidden = hidden + layer(F.silu(hidden + embedding))
    return hidden


def _check_points(img_resolution: int) -> None:
    if img_resolution != 1:
        raise ValueError(f"this network takes points, [C, 1, 1]: expected img_resolution=1, got {img_resolution}")

"""Discriminators, whose logits estimate log p/q: heads on the features of a network of the method, or networks."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, MinLen
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.ranges import Classes, Count, Positive, Width, checked

Shape = tuple[Width, Width, Width]
#: A level of features, counted from the highest resolution, or backwards from the middle.
Level = Annotated[int, Ge(-64), Le(63)]
Levels = Annotated[list[Level], MinLen(1)]


class Discriminator(nn.Module):
    """Logits [B, P] of P positions or heads from features of a noised image.

    With the logistic loss on noised real and generated samples, the optimal logit is ``log p/q``.

    Attributes:
        features_from: what computes them:

            - ``"teacher"``: the frozen teacher (f-distill, arXiv 2502.15681, sec. 3),
            - ``"fake_score"``: the fake score's encoder, which the discriminator's loss trains too (DMD2, arXiv
              2405.14867, sec. 4.3; SiDA, arXiv 2410.14919; Uni-Instruct, arXiv 2505.20755),
            - ``"pretrained"``: a network that learned another task, see :mod:`onestep.models.pretrained_features`, or
            - ``"samples"``: nothing. The features are the noised samples and, if there is one, the condition's image;
              the discriminator is the whole network, see :mod:`onestep.models.sample_networks`.
        levels: levels of its features, ascending indices of ``feature_shapes``.
        logit_bound: the generator's loss clamps the logits to [-logit_bound, logit_bound].
    """

    features_from: Literal["teacher", "fake_score", "pretrained", "samples"]
    levels: Sequence[int] = (-1,)
    logit_bound: float = math.inf

    def forward(self, features: Sequence[Tensor], sigma: Tensor, condition: Condition) -> Tensor:
        """The logits [B, P], in float32, for features [B, F, h, w] of each of the ``levels``.

        ``sigma`` [B] and ``condition`` are those of the features. A network's features depend on both already.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward")


@checked
class PooledHead(Discriminator):
    """A logit per level: two convolutions, their mean over positions, and a linear layer that starts at 0.

    With ``projection``, the product of that layer's inputs and an embedding of the class, which starts at 0 too, is
    added to a logit (Miyato and Koyama 2018, arXiv 1802.05637).

    Args:
        shapes: (F, h, w) of the network's features at each level, as its ``feature_shapes``.
        label_dim: number of classes; 0 for none.
        features_from: see :class:`Discriminator`.
        hidden: channels of a head.
        levels: the levels with a head; None for all.
        projection: project the class.

    Raises:
        ValueError: for a level that the network does not have, or one given twice.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        label_dim: Classes,
        features_from: Literal["teacher", "fake_score", "pretrained"],
        hidden: Width,
        levels: Levels | None,
        projection: bool,
    ) -> None:
        super().__init__()
        self.features_from = features_from
        self.levels = _levels(levels, len(shapes))
        classes = label_dim if projection else 0
        self.heads = nn.ModuleList(_Pooled(shapes[level][0], hidden, classes) for level in self.levels)

    def forward(self, features: Sequence[Tensor], sigma: Tensor, condition: Condition) -> Tensor:
        labels = condition.get("labels")
        return torch.cat([head(one, labels) for head, one in zip(self.heads, features, strict=True)], 1).float()


class _Pooled(nn.Module):
    """The head of one level; ``label_dim`` classes are projected."""

    def __init__(self, channels: int, hidden: int, label_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.conv0 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv1 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.logit = nn.Linear(hidden, 1)
        # The initial estimate is log r = 0.
        nn.init.zeros_(self.logit.weight)
        nn.init.zeros_(self.logit.bias)
        self.projection = nn.Linear(label_dim, hidden, bias=False) if label_dim else None
        if self.projection is not None:
            nn.init.zeros_(self.projection.weight)

    def forward(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """The logits [B, 1] for features [B, F, h, w] and one-hot labels [B, classes]."""
        # Contiguous: the backward pass of torch 2.13's GroupNorm crashes on the CPU for a channels-last input without
        # gradient, such as the features of a frozen teacher.
        x = F.silu(self.conv0(self.norm(features.contiguous())))
        x = F.silu(self.conv1(x)).mean((2, 3))
        logit: Tensor = self.logit(x)
        if self.projection is not None and labels is not None:
            logit = logit + (self.projection(labels) * x).sum(1, keepdim=True)
        return logit


@checked
class ChannelMean(Discriminator):
    """A logit per position: the mean over channels of the middle's features (SiDA, arXiv 2410.14919; Uni-Instruct).

    It has no parameters. Only the fake score's encoder learns, so the features must be the fake score's.

    Args:
        shapes: (F, h, w) of the network's features at each level.
        label_dim: number of classes, which it does not see.
        features_from: ``"fake_score"``.
        logit_bound: see :class:`Discriminator`.
    """

    def __init__(
        self, shapes: Sequence[Shape], label_dim: Classes, features_from: Literal["fake_score"], logit_bound: Positive
    ) -> None:
        super().__init__()
        self.features_from = features_from
        self.logit_bound = logit_bound

    def forward(self, features: Sequence[Tensor], sigma: Tensor, condition: Condition) -> Tensor:
        return features[0].float().mean(1).flatten(1)


@checked
class StridedHeads(Discriminator):
    """A logit per level: convolutions with stride until one position is left, without pooling.

    DMD2's head on the middle (arXiv 2405.14867) and those of FastGen's f-distill on one or every resolution. A layer
    is a 4x4 convolution of stride 2, group norm and SiLU. Layers follow until the sides are at most 4. The last
    convolution has the kernel of the sides that remain, 4x4 for the published networks.

    Args:
        shapes: (F, h, w) of the network's features at each level.
        label_dim: number of classes, which it does not see.
        features_from: see :class:`Discriminator`.
        levels: the levels with a head; None for all.
        groups: the largest number of groups; up to 32 channels have groups of at least 4.

    Raises:
        ValueError: for a level that the network does not have, a level given twice, or features that are too narrow.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        label_dim: Classes,
        features_from: Literal["teacher", "fake_score", "pretrained"],
        levels: Levels | None,
        groups: Count,
    ) -> None:
        super().__init__()
        self.features_from = features_from
        self.levels = _levels(levels, len(shapes))
        self.heads = nn.ModuleList(self._head(*shapes[level], groups) for level in self.levels)

    @staticmethod
    def _head(channels: int, height: int, width: int, groups: int) -> nn.Sequential:
        largest = min(groups, channels if channels > 32 else max(1, channels // 4))
        groups = largest_groups(channels, largest)
        layers: list[nn.Module] = []
        while max(height, width) > 4:
            layers += [nn.Conv2d(channels, channels, 4, stride=2, padding=1), nn.GroupNorm(groups, channels), nn.SiLU()]
            height, width = height // 2, width // 2
        if min(height, width) < 1:
            raise ValueError(
                "discriminator.head: the features are too narrow for strided convolutions; use another head"
            )
        layers += [nn.Conv2d(channels, channels, (height, width)), nn.GroupNorm(groups, channels), nn.SiLU()]
        return nn.Sequential(*layers, nn.Conv2d(channels, 1, 1))

    def forward(self, features: Sequence[Tensor], sigma: Tensor, condition: Condition) -> Tensor:
        logits = [head(one).flatten(1) for head, one in zip(self.heads, features, strict=True)]
        return torch.cat(logits, 1).float()


def largest_groups(channels: int, largest: int) -> int:
    """The largest number of groups of ``channels`` up to ``largest``, at least 1."""
    return next(count for count in range(max(1, largest), 0, -1) if channels % count == 0)


def _levels(levels: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """``levels`` of features as ascending indices from 0, of ``count`` levels; None for all."""
    chosen = [level + count if level < 0 else level for level in (range(count) if levels is None else levels)]
    if not all(0 <= level < count for level in chosen) or len({*chosen}) < len(chosen):
        raise ValueError(
            f"discriminator.head.levels={levels}: the network has features at {count} levels: expected different "
            f"indices from {-count} to {count - 1}, or null for all"
        )
    return tuple(sorted(chosen))

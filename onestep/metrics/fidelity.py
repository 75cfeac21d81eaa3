"""Fidelity of restored images to the originals and to the degraded images that they are made of."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
from annotated_types import Ge, Le
from torch import Tensor

from onestep.images import from_uint8, to_uint8
from onestep.metrics.extraction import Kind
from onestep.metrics.features import FeatureNetwork
from onestep.processes import gather_rows
from onestep.ranges import checked

Channel = Literal["y", "rgb"]
Border = Annotated[int, Ge(0), Le(1024)]

_MOST_DECIBELS = 100.0  # of equal images, whose PSNR is infinite
_WINDOW = 11  # of SSIM, in pixels


class Pairs(Protocol):
    """Originals and their degraded versions; the sample of seed ``s`` is of the pair ``s`` modulo their number."""

    image_shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def pairs(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Any]:
        """Originals [B, C, H, W], degraded images [B, C, h, w], both in [-1, 1], and further conditions."""

    def degrade(self, samples: Tensor, indices: Sequence[int]) -> Tensor | None:
        """``samples`` [B, C, H, W] degraded as the originals were; None if it is not known how."""


@dataclass(frozen=True)
class Restored:
    """Samples with what they are compared with, in grey levels from 0 to 255, float64.

    Args:
        samples, originals: [B, C, H, W].
        low: degraded originals [B, C, h, w].
        low_again: degraded samples [B, C, h, w]; None if it is not known how.
    """

    samples: Tensor
    originals: Tensor
    low: Tensor
    low_again: Tensor | None


class PairMetric(ABC):
    """A metric of samples and the pairs that they are of. The samples are quantised to 8 bits as files are."""

    reads: Kind = "pairs"
    features: FeatureNetwork | None = None
    higher_is_better: bool

    @property
    @abstractmethod
    def title(self) -> str:
        """Its name in tables and plots, with all that values of one name share."""

    def check(self, pairs: Pairs) -> None:  # noqa: B027  # most are defined for all
        """Check that the metric is defined for ``pairs``.

        Raises:
            ValueError: if it is not.
        """

    @abstractmethod
    def measure(self, restored: Restored) -> Tensor:
        """A row [B, ...] for each sample, float32 or uint8."""

    def __call__(self, real: Any, generated: tuple[Tensor, Tensor]) -> float:
        """The mean over the samples' rows; ``generated`` are the rows [N] and the pairs [N] that they are of."""
        return float(generated[0].double().mean())


class _OfChannels(PairMetric):
    """A metric that compares luma or all channels, without a border of pixels."""

    name: str
    higher_is_better = True

    def __init__(self, channel: Channel, border: Border) -> None:
        self.channel, self.border = channel, border

    @property
    def title(self) -> str:
        of = "Y from 16 to 235" if self.channel == "y" else "all channels"
        return f"{self.name} of {of}, peak 255, border {self.border}"

    def check(self, pairs: Pairs) -> None:
        self._check(pairs, least=1)

    def _check(self, pairs: Pairs, least: int) -> None:
        _, height, width = pairs.image_shape
        least += 2 * self.border
        if min(height, width) < least:
            raise ValueError(
                f"{self.name} with a border of {self.border} needs images of at least {least}x{least} pixels, got "
                f"{height}x{width}: set a smaller border, or choose other metrics"
            )

    def _inner(self, levels: Tensor) -> Tensor:
        """The compared channel or channels of ``levels`` [B, C, H, W] without the border."""
        levels = luma(levels) if self.channel == "y" else levels
        height, width = levels.shape[2:]
        return levels[:, :, self.border : height - self.border, self.border : width - self.border]


@checked
class PSNR(_OfChannels):
    """The mean over images of ``10 log10(255^2 / mse)`` in decibels; at most 100, that of equal images.

    Args:
        channel: "y", the luma of BT.601 from 16 to 235, as published; or "rgb", all channels together.
        border: pixels at each side that are left out, usually the factor of the degradation.
    """

    name = "PSNR"

    def measure(self, restored: Restored) -> Tensor:
        error = (self._inner(restored.samples) - self._inner(restored.originals)).square().flatten(1).mean(1)
        return (10 * torch.log10(255**2 / error)).clamp(max=_MOST_DECIBELS).float()


@checked
class SSIM(_OfChannels):
    """The mean over images of the structural similarity, with a Gaussian window of 11 pixels and sigma 1.5.

    As published, it is the mean over windows within the image, which torchmetrics' own mean continues by reflection.

    Args:
        channel, border: see :class:`PSNR`. Of all channels it is the mean of theirs.
    """

    name = "SSIM"

    def check(self, pairs: Pairs) -> None:
        self._check(pairs, least=_WINDOW)

    def measure(self, restored: Restored) -> Tensor:
        # Here, as torchmetrics takes longer to import than torch, and sampling needs none of it.
        from torchmetrics.functional.image import structural_similarity_index_measure

        ours, theirs = self._inner(restored.samples), self._inner(restored.originals)
        _, every = structural_similarity_index_measure(
            ours, theirs, data_range=255.0, reduction="none", return_full_image=True
        )
        inside = every[..., _WINDOW // 2 : -(_WINDOW // 2), _WINDOW // 2 : -(_WINDOW // 2)]
        return inside.flatten(1).mean(1).float()


class Consistency(PairMetric):
    """The mean of |A x - y| in grey levels: how far the degraded sample is from the degraded original."""

    title = "consistency, grey levels of 255"
    higher_is_better = False

    def check(self, pairs: Pairs) -> None:
        if pairs.degrade(pairs.pairs([0])[0], [0]) is None:
            raise ValueError(
                "consistency needs the degradation, which pairs of two folders do not tell: choose other metrics"
            )

    def measure(self, restored: Restored) -> Tensor:
        assert restored.low_again is not None
        return (restored.low_again - restored.low).abs().flatten(1).mean(1).float()


class SeedSpread(PairMetric):
    """The standard deviation of the samples of one degraded image across seeds, in grey levels; 0 for a function of it.

    It is a root mean square over pixels and images, and keeps all samples in memory, a byte for each pixel and channel.
    """

    title = "spread across seeds, grey levels of 255"
    higher_is_better = True
    fewest: int

    def check(self, pairs: Pairs) -> None:
        self.fewest = len(pairs) + 1  # of consecutive seeds, for two samples of one image

    def measure(self, restored: Restored) -> Tensor:
        return restored.samples.flatten(1).to(torch.uint8)

    def __call__(self, real: Any, generated: tuple[Tensor, Tensor]) -> float:
        levels, indices = generated
        total, count = torch.zeros((), dtype=torch.float64), 0
        for index in indices.unique():
            group = levels[indices == index].double()
            if len(group) > 1:
                total += group.var(0).sum()
                count += group.shape[1]
        if not count:
            raise ValueError(
                f"{self.title}: no image has two samples among {len(indices):,}: set more samples than the evaluation "
                "has images, or fewer images, as by data.evaluation.max_size"
            )
        return float((total / count).sqrt())


def luma(levels: Tensor) -> Tensor:
    """Y [B, 1, H, W] of BT.601 from 16 to 235, of grey or RGB ``levels`` [B, C, H, W] from 0 to 255."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=levels.dtype).reshape(3, 1, 1)
    return 16 + (levels.expand(-1, 3, -1, -1) * weights).sum(1, keepdim=True) / 255


def check_pairs(metrics: Mapping[str, Any], pairs: Pairs | None) -> None:
    """Check that there are ``pairs`` for those of the ``metrics`` that read them.

    Raises:
        ValueError: if there are none, or a metric is not defined for them.
    """
    for name, metric in metrics.items():
        if metric.reads == "pairs":
            if pairs is None:
                raise ValueError(
                    f"metrics: {name} compares samples with what they restore, and this data has no pairs: remove "
                    f"{name}, or use data=paired"
                )
            metric.check(pairs)


class Measures:
    """Collects the rows that those of the ``metrics``, by name, that read ``pairs`` have for samples of them.

    Their feature networks work on the ``device``.
    """

    def __init__(self, metrics: Mapping[str, Any], pairs: Pairs | None, device: torch.device | str) -> None:
        self.metrics: dict[str, PairMetric] = {name: one for name, one in metrics.items() if one.reads == "pairs"}
        self.pairs, self.device = pairs, device
        for metric in self.metrics.values():
            if metric.features is not None:
                metric.features.to(device)
        self.rows: dict[str, list[Tensor]] = {name: [] for name in self.metrics}
        self.indices: list[Tensor] = []

    def add(self, samples: Tensor, seeds: Sequence[int] | None) -> None:
        """Add samples [B, C, H, W] in [-1, 1] of these ``seeds``.

        Raises:
            ValueError: without seeds.
        """
        if not self.metrics:
            return
        assert self.pairs is not None
        if seeds is None or len(seeds) != len(samples):
            raise ValueError(
                f"{', '.join(self.metrics)}: the seeds of these samples are not known, which tell what they are of"
            )
        indices = [seed % len(self.pairs) for seed in seeds]
        originals, low, _ = self.pairs.pairs(indices)
        pixels = to_uint8(samples.cpu())
        again = self.pairs.degrade(from_uint8(pixels), indices)
        restored = Restored(
            samples=pixels.double(),
            originals=to_uint8(originals).double(),
            low=to_uint8(low).double(),
            low_again=None if again is None else to_uint8(again).double(),
        )
        self.indices.append(torch.tensor(indices))
        for name, metric in self.metrics.items():
            self.rows[name].append(metric.measure(restored))

    def finish(self, distributed: bool) -> dict[str, tuple[Tensor, Tensor]]:
        """The rows and the pairs that they are of, by metric; if ``distributed``, those of all processes."""
        found = {}
        for name, parts in self.rows.items():
            rows, indices = torch.cat(parts), torch.cat(self.indices)
            if distributed:
                rows, indices = gather_rows(rows, self.device), gather_rows(indices, self.device)
            found[name] = rows, indices
        return found

"""A metric's value: its description, its comparison with another value, and its record."""

import math
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Description:
    """A value's title in tables and plots, and its direction."""

    title: str
    higher_is_better: bool

    @property
    def heading(self) -> str:
        """The title with an arrow in the better direction, such as ``FID ↓``."""
        return f"{self.title} {'↑' if self.higher_is_better else '↓'}"


@dataclass(frozen=True)
class Measurement:
    """A value of a metric that picks the best of several, such as a checkpoint.

    Args:
        key: the value's name.
        value: the number.
        higher_is_better: the direction.
    """

    key: str
    value: float
    higher_is_better: bool

    def is_better_than(self, other: Self | None) -> bool:
        """True if strictly better than ``other``; every value is better than None and NaN."""
        if other is None or math.isnan(other.value):
            return True
        return self.value > other.value if self.higher_is_better else self.value < other.value


@dataclass(frozen=True)
class Result:
    """A reported value with the conditions of its measurement.

    Args:
        metric: the value's key, such as fid.
        value: the number.
        title: its name in tables.
        higher_is_better: the direction.
        features: the feature network.
        reference: the real images and their number.
        samples: number of generated samples.
        protocol_samples: number of samples of a published value in these features; None without a protocol.
        seeds: the first and the last seed; None for samples from files without seeds.
        network_evaluations: network evaluations per sample; None for samples from files.
        classes: how classes were drawn; None for samples without classes or from files.
    """

    metric: str
    value: float
    title: str
    higher_is_better: bool
    features: str
    reference: str
    samples: int
    protocol_samples: int | None
    seeds: list[int] | None
    network_evaluations: int | None
    classes: str | None = None

    @property
    def name(self) -> str:
        """The key; with the number of samples, such as ``fid10k``, if it differs from the protocol's."""
        if self.protocol_samples in (None, self.samples):
            return self.metric
        return f"{self.metric}{self.samples / 1000:g}k"

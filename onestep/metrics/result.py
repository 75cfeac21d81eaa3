"""What a metric's value is: its description, its use in a comparison, and its record."""

import math
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Description:
    """How tables and plots name a value of a metric, and which direction is better."""

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
        """Whether it is strictly better; than none or a NaN every value is."""
        if other is None or math.isnan(other.value):
            return True
        return self.value > other.value if self.higher_is_better else self.value < other.value


@dataclass(frozen=True)
class Result:
    """A reported value with all that a reader needs to believe it.

    Args:
        metric: the value's key, such as fid.
        value: the number.
        title: how tables name the value.
        higher_is_better: the direction.
        features: the feature network.
        reference: the real images, and how many.
        samples: generated samples.
        protocol_samples: samples that a published value in these features has; None where there is no protocol.
        seeds: the first and the last seed; None of files that do not say.
        network_evaluations: evaluations of the network a sample; None of files.
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

    @property
    def name(self) -> str:
        """The key; ``fid10k`` where the number of samples is not the protocol's, so that the value is another one."""
        if self.protocol_samples in (None, self.samples):
            return self.metric
        return f"{self.metric}{self.samples / 1000:g}k"

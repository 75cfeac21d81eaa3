"""A reported figure with all that a reader needs to believe it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One number and where it comes from.

    Args:
        metric: what was measured, such as fid.
        value: the number.
        features: the feature network.
        reference: the real images, and how many.
        samples: generated samples.
        protocol_samples: samples that a published figure in these features has; None where there is no protocol.
        seeds: the first and the last seed; None of files that do not say.
        network_evaluations: evaluations of the network a sample; None of files.
    """

    metric: str
    value: float
    features: str
    reference: str
    samples: int
    protocol_samples: int | None
    seeds: list[int] | None
    network_evaluations: int | None

    @property
    def name(self) -> str:
        """The metric's name; ``fid10k`` where another number of samples than the protocol's makes it another figure."""
        if self.protocol_samples in (None, self.samples):
            return self.metric
        return f"{self.metric}{self.samples / 1000:g}k"

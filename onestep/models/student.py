"""The interface of a student: a trainable module that maps noise and a condition to samples."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from onestep.denoiser import NO_CONDITION, Condition


class Student(Protocol):
    """A module that a distillation trains: :class:`onestep.models.generator.Generator`, or another with its methods.

    The distillation trains the parameters that require a gradient.
    """

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of one sample's noise at each step."""

    @property
    def network_evaluations(self) -> int:
        """Network evaluations per sample, one for each step."""

    @property
    def networks(self) -> Sequence[nn.Module]:
        """Its networks, which a run may shard, compile or checkpoint."""

    def __call__(
        self, latents: Tensor, condition: Condition = NO_CONDITION, noises: Iterator[Tensor] | None = None
    ) -> Tensor:
        """Samples [B, ...] in data units from ``latents`` [B, *noise_shape] ~ N(0, I), after all steps.

        The later steps use ``noises`` [B, *noise_shape].
        """

    def simulate(self, noises: Sequence[Tensor], condition: Condition = NO_CONDITION) -> Tensor:
        """Samples after the first ``len(noises)`` steps, with a graph of the last of these alone."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the student into ``folder``."""

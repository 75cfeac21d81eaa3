"""The interface of a student: whatever makes samples from noise and a condition, and can be trained and kept."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from onestep.denoiser import NO_CONDITION, Condition


class Student(Protocol):
    """A module that a distillation trains: :class:`onestep.models.generator.Generator`, or one of your own.

    What is trained are the parameters that require a gradient.
    """

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of one sample's noise at each step."""

    @property
    def network_evaluations(self) -> int:
        """Network evaluations a sample costs, one for each step."""

    @property
    def networks(self) -> Sequence[nn.Module]:
        """The networks in it, which a run may shard, compile or checkpoint."""

    def __call__(
        self, latents: Tensor, condition: Condition = NO_CONDITION, noises: Iterator[Tensor] | None = None
    ) -> Tensor:
        """Samples [B, ...] in data units from ``latents`` [B, *noise_shape] ~ N(0, I), after all steps.

        The later steps take their noise from ``noises`` [B, *noise_shape].
        """

    def simulate(self, noises: Sequence[Tensor], condition: Condition = NO_CONDITION) -> Tensor:
        """Samples after the first ``len(noises)`` steps, whose graph is that of the last of these alone."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write it into ``folder``."""

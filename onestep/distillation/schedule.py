"""The order of an iteration's updates, and the samples that each of them uses."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

ScheduleName = Literal["shared", "separate", "generator_first"]


class Update(NamedTuple):
    """An update: of which networks, and on which of the iteration's batches of samples, counted from 0."""

    of: Literal["critics", "generator"]
    samples: int


def shared(critic_steps: int) -> list[Update]:
    """The critics, then the generator, all on the samples of one pass of the generator."""
    return [*[Update("critics", 0)] * critic_steps, Update("generator", 0)]


def separate(critic_steps: int) -> list[Update]:
    """The critics, then the generator, each update on samples, conditions and real images of its own (SiD, FastGen)."""
    return [*(Update("critics", step) for step in range(critic_steps)), Update("generator", critic_steps)]


def generator_first(critic_steps: int) -> list[Update]:
    """The generator, then the critics: the first of these on the generator's samples, the rest on their own (DMD2)."""
    return [Update("generator", 0), *(Update("critics", step) for step in range(critic_steps))]


SCHEDULES: Mapping[ScheduleName, Callable[[int], list[Update]]] = {
    "shared": shared,
    "separate": separate,
    "generator_first": generator_first,
}


def batches_per_iteration(updates: list[Update]) -> int:
    """The number of batches of samples, and of data, that the ``updates`` of an iteration use."""
    return 1 + max(update.samples for update in updates)

"""Clipping of the gradients of an optimiser's networks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from onestep.engine.shard import full_tensor, is_sharded
from onestep.ranges import Positive, checked

#: The parameters with a gradient by network. They may be full or sharded.
Parameters = Mapping[str, Sequence[nn.Parameter]]


class Clipping(ABC):
    """Clips gradients in place."""

    @abstractmethod
    def __call__(self, parameters: Parameters, norms: Mapping[str, Tensor]) -> None:
        """Clip the gradients of ``parameters``, of which ``norms`` are the total norms of each network."""


@checked
class NormOfEach(Clipping):
    """Scales each network's gradient to a total norm of at most ``largest``."""

    def __init__(self, largest: Positive) -> None:
        self.largest = largest

    def __call__(self, parameters: Parameters, norms: Mapping[str, Tensor]) -> None:
        """Clip each network by its own norm."""
        for name, group in parameters.items():
            _scale(group, self.largest, norms[name])


@checked
class JointNorm(Clipping):
    """Scales the gradients of all networks by one factor, to a norm of all of at most ``largest`` (DMD2's critics)."""

    def __init__(self, largest: Positive) -> None:
        self.largest = largest

    def __call__(self, parameters: Parameters, norms: Mapping[str, Tensor]) -> None:
        """Clip all networks by their common norm."""
        norm = torch.stack(list(norms.values())).norm()
        for group in parameters.values():
            _scale(group, self.largest, norm)


@checked
class Entries(Clipping):
    """Clamps each entry of the gradients to [-largest, largest] (the fake scores of SiDA and Uni-Instruct: 1)."""

    def __init__(self, largest: Positive) -> None:
        self.largest = largest

    def __call__(self, parameters: Parameters, norms: Mapping[str, Tensor]) -> None:
        """Clamp every entry."""
        for group in parameters.values():
            for part in by_kind(group):
                nn.utils.clip_grad_value_(part, self.largest)


def total_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The norm of all gradients together, in every process that of the full ones."""
    norms = [
        full_tensor(nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]))
        for part in by_kind(parameters)
    ]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def by_kind(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The non-empty lists of full and of sharded parameters: torch's foreach functions take no mixture of both."""
    return [part for sharded in (False, True) if (part := [p for p in parameters if is_sharded(p) is sharded])]


def _scale(parameters: Sequence[nn.Parameter], largest: float, norm: Tensor) -> None:
    for part in by_kind(parameters):
        nn.utils.clip_grads_with_norm_(part, largest, norm)

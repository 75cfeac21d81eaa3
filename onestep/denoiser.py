"""The denoiser convention: ``D(x_sigma [B, C, H, W], sigma [B], condition) -> x0 prediction [B, C, H, W]``.

Everything inside the package speaks it; a network of another family is wrapped once, at the boundary.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from onestep.noise import expand_like

#: The condition of a batch of B images: named tensors [B, ...]; empty for none. Classes are ``labels``, one-hot
#: [B, label_dim]; embeddings of prompts have the names by which their network takes them. Nothing writes to it.
Condition: TypeAlias = dict[str, Tensor]

#: The condition of a network that takes none.
NO_CONDITION: Condition = {}


class Denoiser(Protocol):
    """Anything that predicts x0, given the noised image, its noise level and the image's condition."""

    def __call__(self, x_sigma: Tensor, sigma: Tensor, condition: Condition = NO_CONDITION) -> Tensor: ...


def score(x0: Tensor, x_sigma: Tensor, sigma: Tensor) -> Tensor:
    """The score ``(D - x_sigma) / sigma^2`` [B, ...] of the distribution of x0-prediction ``x0`` at ``x_sigma``."""
    return (x0 - x_sigma) / expand_like(sigma, x_sigma) ** 2


def map_condition(function: Callable[[Tensor], Tensor], condition: Condition) -> Condition:
    """``function`` of each tensor of the ``condition``: moves, selects or expands."""
    return {name: function(tensor) for name, tensor in condition.items()}


def concatenate_conditions(*conditions: Condition) -> Condition:
    """The conditions of several batches, of the same names, as the condition of one."""
    return {name: torch.cat([condition[name] for condition in conditions]) for name in conditions[0]}


def micro_batches(value: Tensor | Condition | None, count: int) -> Sequence[Any]:
    """``value`` [B, ...], a tensor or a condition, in ``count`` equal parts; None is None in each."""
    if isinstance(value, dict):
        parts = {name: tensor.chunk(count) for name, tensor in value.items()}
        return [{name: tensors[part] for name, tensors in parts.items()} for part in range(count)]
    return [None] * count if value is None else value.chunk(count)


def beyond_labels(taken: Sequence[str]) -> list[str]:
    """The names in ``taken`` that no seed gives a network: all but ``labels``."""
    return [name for name in taken if name != "labels"]


def check_condition(condition: Condition, taken: Sequence[str], required: bool) -> None:
    """Refuse a ``condition`` of other names than the network has ``taken``, or none where it is ``required``.

    Raises:
        ValueError: naming both sides.
    """
    if len(condition) == len(taken) and all(name in condition for name in taken):
        return
    if condition or required:
        raise ValueError(
            f"this network takes a condition of {', '.join(taken) or 'no tensors'}, and is given "
            f"{', '.join(condition) or 'none'}: choose data and a network of the same conditions"
        )

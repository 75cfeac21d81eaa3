"""The denoiser convention: ``D(x_sigma [B, C, H, W], sigma [B], condition) -> x0 prediction [B, C, H, W]``.

Everything inside the package speaks it; a network of another family is wrapped once, at the boundary.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from onestep.noise import expand_like

#: What a batch of B images is drawn of: one-hot labels [B, label_dim]; for a text-to-image network its embeddings
#: [B, ...] under the names by which that network takes them, such as ``encoder_hidden_states``; or None.
Condition: TypeAlias = Tensor | dict[str, Tensor] | None


class Denoiser(Protocol):
    """Anything that predicts x0, given the noised image, its noise level and the image's condition."""

    def __call__(self, x_sigma: Tensor, sigma: Tensor, condition: Condition = None) -> Tensor: ...


def score(x0: Tensor, x_sigma: Tensor, sigma: Tensor) -> Tensor:
    """The score ``(D - x_sigma) / sigma^2`` [B, ...] of the law whose x0-prediction at ``x_sigma`` is ``x0``."""
    return (x0 - x_sigma) / expand_like(sigma, x_sigma) ** 2


def map_condition(function: Callable[..., Tensor], *conditions: Condition) -> Condition:
    """``function`` of each tensor of the conditions, which are all of one kind: moves, chooses, expands or joins."""
    first = conditions[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function(*conditions)
    named = [condition for condition in conditions if isinstance(condition, dict)]
    return {name: function(*(condition[name] for condition in named)) for name in first}


def concatenate_conditions(*conditions: Condition) -> Condition:
    """The conditions of several batches as those of one."""
    return map_condition(lambda *tensors: torch.cat(tensors), *conditions)


def micro_batches(value: Condition, count: int) -> Sequence[Any]:
    """``value`` [B, ...], one tensor or several by name, in ``count`` equal parts."""
    if isinstance(value, dict):
        return [{name: tensor.chunk(count)[part] for name, tensor in value.items()} for part in range(count)]
    return [None] * count if value is None else value.chunk(count)

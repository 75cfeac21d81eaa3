"""The denoiser convention: ``D(x_sigma [B, C, H, W], sigma [B], condition) -> x0 prediction [B, C, H, W]``.

All modules of the package use it. A network of another family is wrapped when it is loaded.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from onestep.noise import expand_like

#: The condition of a batch of B images: named tensors [B, ...]; empty for none. Classes are ``labels``, one-hot
#: [B, label_dim]; an image of the samples' shape, such as a degraded one, is ``image`` [B, C, H, W] in data units;
#: embeddings of prompts have the names of their network's arguments. It is never modified.
Condition: TypeAlias = dict[str, Tensor]

#: The empty condition.
NO_CONDITION: Condition = {}


class Denoiser(Protocol):
    """A function that predicts x0 from noised images, noise levels and conditions."""

    def __call__(self, x_sigma: Tensor, sigma: Tensor, condition: Condition = NO_CONDITION) -> Tensor: ...


def score(x0: Tensor, x_sigma: Tensor, sigma: Tensor) -> Tensor:
    """The score ``(D - x_sigma) / sigma^2`` [B, ...] of the distribution of x0-prediction ``x0`` at ``x_sigma``."""
    return (x0 - x_sigma) / expand_like(sigma, x_sigma) ** 2


def map_condition(function: Callable[[Tensor], Tensor], condition: Condition) -> Condition:
    """``function`` of each tensor of the ``condition``."""
    return {name: function(tensor) for name, tensor in condition.items()}


def concatenate_conditions(*conditions: Condition) -> Condition:
    """The condition of the concatenated batches, for conditions with the same names."""
    return {name: torch.cat([condition[name] for condition in conditions]) for name in conditions[0]}


def micro_batches(value: Tensor | Condition | None, count: int) -> Sequence[Any]:
    """``value`` [B, ...], a tensor or a condition, in ``count`` equal parts; None gives None for each."""
    if isinstance(value, dict):
        parts = {name: tensor.chunk(count) for name, tensor in value.items()}
        return [{name: tensors[part] for name, tensors in parts.items()} for part in range(count)]
    return [None] * count if value is None else value.chunk(count)


def prompt_keys(taken: Sequence[str]) -> list[str]:
    """The names in ``taken`` of embeddings of prompts."""
    return [name for name in beyond_labels(taken) if name != "image"]


def beyond_labels(taken: Sequence[str]) -> list[str]:
    """The names in ``taken`` other than ``labels``, which alone are a function of the seed."""
    return [name for name in taken if name != "labels"]


def keys_of_data(network: Any) -> list[str]:
    """The names other than ``labels`` in conditions for ``network``, with those that it ignores."""
    return beyond_labels([*network.condition_keys, *getattr(network, "ignored_keys", ())])


def check_condition(
    condition: Collection[str], taken: Sequence[str], required: bool, optional: Sequence[str] = ()
) -> None:
    """Check that a ``condition`` has the names that the network takes, ``taken``, or is empty if not ``required``.

    It may have ``optional`` names besides.

    Raises:
        ValueError: for other names, or a missing condition.
    """
    given = [name for name in condition if name not in optional]
    if len(given) == len(taken) and all(name in condition for name in taken):
        return
    if given or required:
        raise ValueError(
            f"this network takes a condition of {', '.join(taken) or 'no tensors'}, got "
            f"{', '.join(given) or 'none'}: use data and a network with the same conditions"
        )

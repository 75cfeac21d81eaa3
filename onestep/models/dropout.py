"""Dropout of networks that are otherwise in eval mode."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

_LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def _layers(networks: Sequence[nn.Module]) -> list[nn.Module]:
    return [module for network in networks for module in network.modules() if isinstance(module, _LAYERS)]


def set_dropout(networks: Sequence[nn.Module], probability: float, setting: str) -> None:
    """Set the ``probability`` of all dropout layers of ``networks``; 0 leaves them as they are.

    Raises:
        ValueError: naming the ``setting``, if they have no such layers.
    """
    layers = _layers(networks) if probability else []
    if probability and not layers:
        names = ", ".join(type(network).__name__ for network in networks) or "no network"
        raise ValueError(f"{setting}={probability}: {names} has no dropout layers: set {setting}=0")
    for layer in layers:
        layer.p = probability  # type: ignore[assignment]


@contextmanager
def dropout(networks: Sequence[nn.Module], active: bool) -> Iterator[None]:
    """Context in which the dropout layers of ``networks``, and no other modules, are ``active`` or not."""
    before = [(layer, layer.training) for layer in _layers(networks)]
    for layer, _ in before:
        layer.training = active
    try:
        yield
    finally:
        for layer, training in before:
            layer.training = training

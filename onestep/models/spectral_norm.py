"""Spectral normalisation of a discriminator (Miyato et al. 2018, arXiv 1802.05957)."""

from typing import Any

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized


def add_spectral_norm(network: nn.Module) -> None:
    """Divide the weight of every convolution and linear layer of ``network`` by its largest singular value.

    The value is an estimate. It changes in :func:`iterate` alone, not in passes: all passes between two steps of the
    optimiser have the same weights. A weight that starts at 0 has no direction: it gets the layer's random start.

    Raises:
        ValueError: for a network without such layers.
    """
    layers: list[Any] = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    if not layers:
        raise ValueError(
            "discriminator.spectral_norm=true has no effect: this discriminator has no layers of its own; leave it out"
        )
    for layer in layers:
        if not layer.weight.any():
            layer.reset_parameters()
        spectral_norm(layer)
        layer.parametrizations.eval()


def has_spectral_norm(layer: nn.Module) -> bool:
    """True for a layer of :func:`add_spectral_norm`."""
    return isinstance(layer, nn.Conv2d | nn.Linear) and is_parametrized(layer, "weight")


def iterate(layer: Any) -> None:
    """Improve the estimate of a layer's largest singular value, by a step of the power method on its new weight."""
    layer.parametrizations.train()
    assert layer.weight is not None  # reading it is the step
    layer.parametrizations.eval()

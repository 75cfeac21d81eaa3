"""The implementation of attention in networks of diffusers."""

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch

ATTENTIONS = ("sdpa", "xformers")


def check_attention(attention: str, device: torch.device) -> None:
    """Check that this machine supports ``attention``, before anything is loaded.

    Raises:
        ValueError: for an unknown choice, or xformers without CUDA or where it is not installed.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"attention={attention}: choose one of {', '.join(ATTENTIONS)}")
    if attention == "xformers" and device.type != "cuda":
        raise ValueError(f"attention=xformers needs CUDA, and this run is on {device.type}: use attention=sdpa")
    if attention == "xformers" and importlib.util.find_spec("xformers") is None:
        raise ValueError("attention=xformers needs the package xformers: pip install 'onestep[xformers]'")


def set_attention(attention: str, networks: Iterable[Any]) -> None:
    """Set the ``attention`` of ``networks``; their default is PyTorch's ("sdpa").

    Raises:
        ValueError: for another choice in a network that is not of diffusers or does not support it.
    """
    if attention == "sdpa":
        return
    from onestep.models.diffusers.denoiser import DiffusersDenoiser  # imports diffusers

    for network in networks:
        if not isinstance(network, DiffusersDenoiser):
            raise ValueError(f"attention={attention} is for networks of diffusers: use attention=sdpa")
        try:
            network.enable_xformers_memory_efficient_attention()
        except (ValueError, NotImplementedError, ModuleNotFoundError) as error:
            raise ValueError(f"attention={attention} does not work here: {error}; use attention=sdpa") from error

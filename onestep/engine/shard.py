"""Sharding of parameters over processes (FSDP2), and activation checkpointing."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks of a network: the members of its outermost ModuleLists and ModuleDicts."""
    found: list[nn.Module] = []
    for child in network.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            found += child.children()
        else:
            found += blocks_of(child)
    return found


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every parameter over the processes of ``mesh``; each block is gathered for its computation (FSDP2).

    Gradients are averaged over the processes. Only calls of the network gather parameters. Scalars remain whole, and
    their gradients are each process's own.
    """
    scalars = {parameter for parameter in network.parameters() if parameter.ndim == 0}  # FSDP2 shards none
    for block in blocks_of(network):
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh, ignored_params=scalars)
    # Gathered again for the backward pass: in between, requires_grad changes on the sharded parameters.
    fully_shard(network, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)


def checkpoint_activations(network: nn.Module) -> None:
    """Recompute the activations of the network's blocks in the backward pass.

    The recomputation freezes the parameters that were frozen in the forward pass.
    """
    for block in blocks_of(network):
        block.forward = partial(_checkpointed, block, block.forward)


def _checkpointed(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if torch.compiler.is_compiling():  # the compiler traces both passes at once
        return checkpoint(forward, *inputs, use_reentrant=False, **options)
    frozen = {name for name, parameter in block.named_parameters() if not parameter.requires_grad}

    @contextmanager
    def as_before() -> Iterator[None]:
        thawed = [p for name, p in block.named_parameters() if name in frozen and p.requires_grad]
        for parameter in thawed:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in thawed:
                parameter.requires_grad_(True)

    def contexts() -> tuple[nullcontext[None], AbstractContextManager[None]]:
        return nullcontext(), as_before()

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **options)


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one, for which every process must call it; other tensors are returned unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(example: Tensor | None, value: Tensor) -> Tensor:
    """The full tensor ``value`` sharded like ``example``; unchanged if that is not sharded."""
    if not isinstance(example, DTensor):
        return value
    return distribute_tensor(value.to(example.device), example.device_mesh, example.placements)


@contextmanager
def full_state_dict(network: nn.Module) -> Iterator[None]:
    """Context in which ``network.state_dict()`` returns full, contiguous tensors, for a single process to save.

    Every process must enter it.
    """
    tensors = {name: full_tensor(tensor.detach()).contiguous() for name, tensor in network.state_dict().items()}
    network.state_dict = lambda *_, **__: tensors  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del network.state_dict


def is_sharded(parameter: Tensor) -> bool:
    """True if ``parameter`` is sharded over processes."""
    return isinstance(parameter, DTensor)

"""Networks whose parameters the processes share (FSDP2), and what every large network can be told besides."""

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
    """The units that a network is a list of: what its outermost ModuleLists and ModuleDicts hold."""
    found: list[nn.Module] = []
    for child in network.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            found += child.children()
        else:
            found += blocks_of(child)
    return found


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Keep a share of every parameter in each process of ``mesh``; a block is gathered while it computes (FSDP2).

    Gradients come out averaged over the processes. Only the network's own ``forward`` gathers what it needs.
    """
    for block in blocks_of(network):
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    # Gathered again for the backward pass: between the two, parameters are frozen and thawed as shares.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def checkpoint_activations(network: nn.Module) -> None:
    """Keep no activations within the network's blocks: the backward pass computes each block anew.

    With the same parameters frozen as in the forward pass, whatever has happened to them in between.
    """
    for block in blocks_of(network):
        block.forward = partial(_anew, block, block.forward)


def _anew(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if torch.compiler.is_compiling():  # both passes are then made at once
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
    """The whole of a shared tensor, which every process must ask for; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(own: Tensor | None, value: Tensor) -> Tensor:
    """``value``, which is whole, shared as ``own`` is."""
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


@contextmanager
def full_state_dict(network: nn.Module) -> Iterator[None]:
    """Within the context ``network.state_dict()`` gives whole, contiguous tensors, so that any one process can save it.

    Every process must enter it.
    """
    tensors = {name: full_tensor(tensor.detach()).contiguous() for name, tensor in network.state_dict().items()}
    network.state_dict = lambda *_, **__: tensors  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del network.state_dict


def is_sharded(parameter: Tensor) -> bool:
    """Whether each process has a share of ``parameter``."""
    return isinstance(parameter, DTensor)

"""Memory layout, sharding, compilation and activation checkpointing of the networks of a run."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from onestep.engine.settings import CompileMode
from onestep.engine.shard import checkpoint_activations, shard
from onestep.models.base import DenoiserNetwork
from onestep.ranges import checked


@checked
@dataclass(frozen=True)
class Layout:
    """Memory layout and execution of networks.

    Args:
        channels_last: store convolutions' weights in the channels-last format.
        gradient_checkpointing: recompute activations in the backward pass of trained networks.
        shard: shard each network's parameters over processes (FSDP2).
        compile: True for torch.compile, or one of its modes; False for eager execution.

    Raises:
        ValueError: for channels_last with shard.
    """

    channels_last: bool
    gradient_checkpointing: bool
    shard: bool
    compile: bool | CompileMode

    def __post_init__(self) -> None:
        if self.channels_last and self.shard:
            raise ValueError("channels_last=true and shard=true: FSDP2 needs contiguous weights; choose one of the two")


def prepare_networks(
    layout: Layout, device: torch.device, trained: Sequence[nn.Module], others: Sequence[nn.Module]
) -> None:
    """Apply ``layout`` to the networks in place, before their optimisers are made.

    Raises:
        ValueError: for ``shard`` in a single process, or an unknown mode of torch.compile.
    """
    networks = [network for network in [*trained, *others] if isinstance(network, DenoiserNetwork)]
    if layout.channels_last:
        for network in networks:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch has no type for it
    if layout.gradient_checkpointing:
        for module in trained:
            checkpoint_activations(module)
    if layout.shard:
        if not torch.distributed.is_initialized():
            raise ValueError("shard=true needs several processes, got 1: start them with accelerate launch")
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        for network in networks:
            shard(network, mesh)
        # torch's caches of sharded operations keep the mesh to the end of the program, and the mesh the group of
        # processes. Its threads must end before, see onestep.build.processes.
        weakref.finalize(networks[0], mesh._pg_registry.clear)
    if layout.compile:
        mode = None if layout.compile is True else layout.compile
        try:
            for network in networks:
                network.compile(mode=mode)
        except RuntimeError as error:
            raise ValueError(f"compile={mode}: expected true, false or a mode of torch.compile: {error}") from error

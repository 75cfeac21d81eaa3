"""A short training of a network that is undone afterwards."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from onestep.engine.clipping import by_kind
from onestep.engine.shard import full_tensor, is_sharded
from onestep.processes import average_over_processes

_Samples = TypeVar("_Samples")
#: Adam's learning rate relative to the root mean square of the weights. Of its own, as the run's may be the fault.
_RATE = 0.003


@contextmanager
def refitted(
    network: nn.Module, batches: Iterable[Sequence[_Samples]], loss: Callable[[_Samples], Tensor]
) -> Iterator[None]:
    """Context in which ``network`` has had one step of Adam for each of ``batches``; its weights are restored.

    Every process must enter it: a step is for the mean gradient of all processes.

    Args:
        network: its parameters may be full or sharded, some of them frozen.
        batches: of this process, in micro-batches of equal size.
        loss: losses [b] of a micro-batch.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    kept = [parameter.detach().clone() for parameter in parameters]
    groups = by_kind(parameters)
    norms = torch.stack([full_tensor(nn.utils.get_total_norm([p.detach() for p in group])) for group in groups])
    scale = float(norms.norm()) / sum(parameter.numel() for parameter in parameters) ** 0.5
    optimizer = torch.optim.Adam([{"params": group} for group in groups], lr=_RATE * scale)
    try:
        for batch in batches:
            for samples in batch:
                with torch.enable_grad():
                    (loss(samples).mean() / len(batch)).backward()
            average_over_processes([p.grad for p in parameters if p.grad is not None and not is_sharded(p)])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield
    finally:
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)

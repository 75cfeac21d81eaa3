"""Collective operations over the processes of a run; no-ops in a single process."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_count() -> tuple[int, int]:
    """The rank of this process and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def process_rows(count: int) -> range:
    """This process's consecutive rows of ``count``, in the order of the ranks."""
    rank, processes = rank_and_count()
    return range(rank * count // processes, (rank + 1) * count // processes)


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum ``values`` in place and return them; their shape must be equal in all processes."""
    if rank_and_count()[1] > 1:
        dist.all_reduce(values)
    return values


def average_over_processes(tensors: Sequence[Tensor]) -> None:
    """Average each of ``tensors`` in place, with one reduction per dtype."""
    processes = rank_and_count()[1]
    if processes == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        some = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = sum_over_processes(torch.cat([tensor.flatten() for tensor in some])) / processes
        for tensor, values in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
            tensor.copy_(values.view_as(tensor))


def from_main_process(read: Callable[[], Any]) -> Any:
    """The result of ``read`` in the main process, which alone calls it, in every process.

    Raises:
        ValueError: in every process, if ``read`` raises one, or an OSError.
    """
    if rank_and_count()[1] == 1:
        return read()
    found: list[Any] = [None, None]
    if rank_and_count()[0] == 0:
        try:
            found[0] = read()
        except (ValueError, OSError) as error:
            found[1] = str(error)
    dist.broadcast_object_list(found)
    if found[1] is not None:
        raise ValueError(found[1])
    return found[0]


def meet(device: torch.device | str) -> None:
    """Wait for all processes: a process that works alone thus notices a lost one.

    Raises:
        RuntimeError: if a process is lost, at once or after the timeout of collective operations.
    """
    if rank_and_count()[1] > 1:
        sum_over_processes(torch.zeros(1, device=device)).item()


def broadcast_flag(value: bool, device: torch.device | str) -> bool:
    """The ``value`` of the main process."""
    if rank_and_count()[1] == 1:
        return value
    flag = torch.tensor([int(value)], device=device)
    dist.broadcast(flag, src=0)
    return bool(flag)


def gather_rows(rows: Tensor, device: torch.device | str) -> Tensor:
    """The rows [N, ...] of all processes in the order of their ranks, on the CPU; N may differ between processes."""
    processes = rank_and_count()[1]
    if processes == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(processes)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=device))
    longest = int(torch.cat(counts).max())
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])]).to(device)
    gathered = [torch.empty_like(padded) for _ in range(processes)]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(count)].cpu() for part, count in zip(gathered, counts, strict=True)])

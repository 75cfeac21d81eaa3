"""What the processes of a run tell each other about features; in a single one there is nothing to tell."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_count() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def share_of(count: int) -> range:
    """This process's share of ``count`` samples: the first process has the first."""
    rank, processes = rank_and_count()
    return range(rank * count // processes, (rank + 1) * count // processes)


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of all processes' ``values``, of the same shape everywhere."""
    if rank_and_count()[1] > 1:
        dist.all_reduce(values)
    return values


def main_process_says(value: bool, device: torch.device | str) -> bool:
    """What the first process says, to all."""
    if rank_and_count()[1] == 1:
        return value
    told = torch.tensor([int(value)], device=device)
    dist.broadcast(told, src=0)
    return bool(told)


def gather_rows(rows: Tensor, device: torch.device | str) -> Tensor:
    """The rows [N, D] of all processes, in the order of their ranks, on the CPU; they may differ in N."""
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

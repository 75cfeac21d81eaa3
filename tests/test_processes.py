"""Collective operations in one and two processes, and the reference's features from two processes."""

import os
import socket
import time
from pathlib import Path

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, multiprocessing

from onestep.build.processes import separate_processes
from onestep.data.dataset import ImagesInMemory
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.reference import reference_features
from onestep.processes import (
    average_over_processes,
    broadcast_flag,
    gather_rows,
    process_rows,
    rank_and_count,
    sum_over_processes,
)

IMAGES = torch.randn(7, 1, 2, 2, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


class FirstPixels(FeatureNetwork):
    """Two pixels as features. ``seen`` counts the images."""

    title = "two pixels"
    seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images[:, 0, 0].float()


def test_a_single_process_is_left_alone() -> None:
    values = torch.tensor([1.0, 2.0])
    assert rank_and_count() == (0, 1) and process_rows(5) == range(5)
    assert sum_over_processes(values) is values and gather_rows(values, "cpu") is values
    average_over_processes([values])
    assert values.tolist() == [1, 2] and broadcast_flag(True, "cpu") and not broadcast_flag(False, "cpu")


def start(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    own = torch.tensor([1.0, 10.0]) * (rank + 1)
    tensors = [own.clone(), own[:1].double() + 0.5, own.clone().reshape(2, 1)]
    average_over_processes(tensors)
    rows = process_rows(7)
    seen: list[int] = []
    kinds: list[list[str]] = []
    for _ in range(2):  # the second iteration reads the cached moments and computes the vectors
        network = FirstPixels()
        wanted = {"moments"} if not kinds else {"moments", "vectors"}
        found = reference_features(ImagesInMemory(IMAGES), network, wanted, "cpu", f"{folder}/cache")  # type: ignore[arg-type]
        seen.append(network.seen)
        kinds.append(sorted(found))
    torch.save(
        {
            "sum": sum_over_processes(own.clone()),
            "averages": tensors,
            "flags": [broadcast_flag(flag, "cpu") for flag in (rank == 0, rank == 1)],
            "rows": [rows.start, rows.stop],
            "gathered": gather_rows(torch.arange(rows.start, rows.stop)[:, None], "cpu"),
            "seen": seen,
            "kinds": kinds,
            "vectors": found["vectors"],
        },
        f"{folder}/{rank}.pt",
    )
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    multiprocessing.start_processes(start, (str(tmp_path),), nprocs=2, start_method="fork")  # type: ignore[attr-defined]
    for rank in (0, 1):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert result["sum"].tolist() == [3, 30] and result["flags"] == [True, False]
        averages = [tensor.tolist() for tensor in result["averages"]]
        assert averages == [[1.5, 15], [2.0], [[1.5], [15]]] and result["averages"][1].dtype == torch.float64
        assert result["rows"] == [[0, 3], [3, 7]][rank] and result["gathered"].flatten().tolist() == [*range(7)]
        assert result["seen"] == [[3, 3], [4, 4]][rank]
        assert result["kinds"] == [["moments"], [["moments", "vectors"], ["vectors"]][rank]]
        assert torch.equal(result["vectors"], FirstPixels()((IMAGES * 127.5 + 128).clamp(0, 255).to(torch.uint8)))


def run_two_commands(rank: int, folder: str, port: int) -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()  # those of the parent
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = []
    for _ in range(2):
        with separate_processes():
            PartialState(cpu=True)
            found.append([*rank_and_count(), int(sum_over_processes(torch.tensor([rank + 1])))])
            if rank == 0:
                time.sleep(0.5)  # the other process comes first to the second command
    torch.save(found, f"{folder}/{rank}.pt")


def test_two_commands_of_a_program_share_a_group(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(run_two_commands, (str(tmp_path), port), nprocs=2, start_method="fork")  # type: ignore[attr-defined]
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)] == [[[rank, 2, 3]] * 2 for rank in (0, 1)]

"""Everything of a run that training changes, and its way to a checkpoint and back.

A checkpoint is a folder of safetensors and JSON; nothing in it is ever unpickled. It is written under another name and
renamed when complete, so a run that dies while saving leaves the last good one.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_FOLDER = "checkpoints"


class TrainingState:
    """The networks and optimisers of a run under their names, and how many cycles they have seen.

    Args:
        networks: modules whose ``state_dict`` is kept, averages and running statistics among them.
        optimizers: their optimisers, keyed as the reader of a checkpoint should see them.
    """

    def __init__(self, networks: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer]) -> None:
        self.networks, self.optimizers = networks, optimizers
        self.cycle = 0
        self.seconds = 0.0

    def save(self, run: Path, keep_last: int) -> Path:
        """Write ``run/checkpoints/cycle_NNNNNNNN`` and delete all but the newest ``keep_last`` up to it."""
        folder = run / _FOLDER / f"cycle_{self.cycle:08d}"
        beside = folder.with_name(f".writing_{folder.name}")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for name, network in self.networks.items():
            save_file(
                {key: value.contiguous() for key, value in network.state_dict().items()}, beside / f"{name}.safetensors"
            )
        for name, optimizer in self.optimizers.items():
            tensors, groups = _split_optimizer_state(optimizer.state_dict())
            save_file(tensors, beside / f"{name}.optimizer.safetensors")
            (beside / f"{name}.optimizer.json").write_text(json.dumps(groups))
        (beside / "state.json").write_text(json.dumps({"cycle": self.cycle, "seconds": self.seconds}))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)
        # Later ones are of a run that went on from here before: they must not push out the one just written.
        for old in [path for path in list_checkpoints(run) if path <= folder][:-keep_last]:
            shutil.rmtree(old)
        return folder

    def load(self, folder: Path) -> None:
        """Take over the checkpoint in ``folder``.

        Raises:
            ValueError: if it is incomplete or belongs to a run with other networks.
        """
        try:
            for name, network in self.networks.items():
                network.load_state_dict(load_file(folder / f"{name}.safetensors"))
            for name, optimizer in self.optimizers.items():
                tensors = load_file(folder / f"{name}.optimizer.safetensors")
                groups = json.loads((folder / f"{name}.optimizer.json").read_text())
                optimizer.load_state_dict(_join_optimizer_state(tensors, groups))
            counters = json.loads((folder / "state.json").read_text())
            self.cycle, self.seconds = counters["cycle"], counters["seconds"]
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(f"cannot resume from {folder}: {error}") from error


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted((run / _FOLDER).glob("cycle_*"))


def find_checkpoint(resume: str | None, run: Path) -> Path | None:
    """The checkpoint that ``resume`` names: None for a fresh start.

    Args:
        resume: "auto" for the newest in this run's folder if there is any, a run's folder for its newest, or a
            checkpoint's own folder; None for a fresh start.
        run: this run's folder.

    Raises:
        ValueError: if a path is given that holds no checkpoint.
    """
    if resume is None:
        return None
    if resume == "auto":
        return next(reversed(list_checkpoints(run)), None)
    path = Path(resume)
    if (path / "state.json").is_file():
        return path
    if found := list_checkpoints(path):
        return found[-1]
    raise ValueError(f"resume={resume}: no checkpoint there; give a run's folder, a checkpoint's folder, or 'auto'")


def _split_optimizer_state(state: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The state's tensors, as ``<parameter index>.<name>``, and its parameter groups, which are plain values."""
    tensors = {f"{index}.{name}": value for index, values in state["state"].items() for name, value in values.items()}
    return tensors, state["param_groups"]


def _join_optimizer_state(tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": groups}

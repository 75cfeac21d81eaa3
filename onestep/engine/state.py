"""The state of a run that training changes, and its saving to and loading from a checkpoint."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from onestep.engine.checkpoint import Snapshot, damage, write_checkpoint
from onestep.engine.optimizer import GuardedOptimizer
from onestep.engine.shard import full_tensor, is_sharded, shard_like
from onestep.metrics.result import Measurement

_COUNTERS = ("iteration", "seconds", "skipped_steps", "rollbacks")


class TrainingState:
    """The networks and optimisers of a run by name, and its counters.

    A checkpoint holds full tensors, also of sharded networks: a run can resume with another number of processes.

    Args:
        networks: modules whose ``state_dict`` is saved, averages and running statistics included.
        optimizers: their guarded optimisers.
    """

    def __init__(self, networks: dict[str, nn.Module], optimizers: dict[str, GuardedOptimizer]) -> None:
        self.networks, self.optimizers = networks, optimizers
        self.iteration = 0
        self.seconds = 0.0
        self.skipped_steps = 0  # consecutive iterations with a skipped step
        self.rollbacks = 0  # rollbacks to a checkpoint with lower learning rates

    def snapshot(
        self, log: Sequence[Any] = (), measured: Measurement | None = None, keep: bool = True
    ) -> Snapshot | None:
        """A copy of the state on the CPU. Every process must call it.

        Args:
            log: the log's pending values, see :meth:`onestep.engine.log.RunLog.state`.
            measured: the value that picks the best checkpoint; None if it was not measured at this iteration.
            keep: False returns None, for processes that only take part in the gathering of sharded tensors.
        """
        tensors: dict[str, dict[str, Tensor]] = {}
        values: dict[str, Any] = {"log": log}
        for name, network in self.networks.items():
            tensors[name] = _copies(network.state_dict(), keep)
        for guard in self.optimizers.values():
            for name, optimizer in guard.optimizers.items():
                flat, groups = _split_optimizer_state(optimizer.state_dict())
                tensors[f"{name}.optimizer"] = _copies(flat, keep)
                values[f"{name}.optimizer"] = {"groups": copy.deepcopy(groups), "guard": guard.state_dict()}
        values["state"] = {counter: getattr(self, counter) for counter in _COUNTERS}
        return Snapshot(self.iteration, tensors, values, measured) if keep else None

    def save(self, run: Path, keep_last: int) -> Path:
        """Write a checkpoint at once, see :func:`onestep.engine.checkpoint.write_checkpoint`."""
        snapshot = self.snapshot()
        assert snapshot is not None
        return write_checkpoint(run, snapshot, keep_last)

    def load(self, folder: Path) -> list[Any]:
        """Load the checkpoint in ``folder``, and return the log's pending values.

        Raises:
            ValueError: if it is damaged, before anything is loaded, or belongs to a run with other networks.
        """
        if reason := damage(folder):
            raise ValueError(f"cannot resume from {folder}: {reason}")
        try:
            for name, network in self.networks.items():
                saved = load_file(folder / f"{name}.safetensors")
                current = network.state_dict()
                network.load_state_dict({key: shard_like(current.get(key), value) for key, value in saved.items()})
            for guard in self.optimizers.values():
                for name, optimizer in guard.optimizers.items():
                    tensors = load_file(folder / f"{name}.optimizer.safetensors")
                    saved_values = json.loads((folder / f"{name}.optimizer.json").read_text())
                    _load_optimizer(optimizer, tensors, saved_values["groups"])
                    guard.load_state_dict(saved_values["guard"])
            counters = json.loads((folder / "state.json").read_text())
            for counter in _COUNTERS:
                setattr(self, counter, counters[counter])
            return json.loads((folder / "log.json").read_text())
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(f"cannot resume from {folder}: {error}") from error


def _copies(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Full copies on the CPU; empty unless ``keep``."""
    copies = {}
    for name, tensor in tensors.items():
        gathered = full_tensor(tensor.detach())
        if keep:
            copies[name] = gathered.to("cpu", copy=True).contiguous()
    return copies


def _split_optimizer_state(state: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The state's tensors, named ``<parameter index>.<name>``, and its parameter groups as plain values."""
    tensors = {f"{index}.{name}": value for index, values in state["state"].items() for name, value in values.items()}
    return tensors, state["param_groups"]


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        # Adam's moments have the parameter's shape, its counter of steps is a scalar.
        example = parameter if value.shape == parameter.shape else None
        if example is not None and not is_sharded(example):  # a fused step needs the parameter's memory layout
            value = torch.empty_like(example, dtype=value.dtype, device=value.device).copy_(value)
        state.setdefault(int(index), {})[name] = shard_like(example, value)
    optimizer.load_state_dict({"state": state, "param_groups": groups})

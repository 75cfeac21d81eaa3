"""The state of a run that training changes, and its saving to and loading from a checkpoint."""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor, nn

from onestep.engine.checkpoint import Snapshot, damage, write_checkpoint
from onestep.engine.optimizer import GuardedOptimizer
from onestep.engine.shard import full_tensor, is_sharded, shard_like
from onestep.metrics.result import Measurement
from onestep.reading import read_json, read_tensors

Counter = Annotated[int, Field(ge=0, le=2**40)]  # more iterations than any run has
Moments = Annotated[list[FiniteFloat | None], Field(min_length=4, max_length=4)]  # null: not finite


@dataclass
class _Counters:
    """The content of ``state.json``."""

    iteration: Counter
    seconds: Annotated[FiniteFloat, Field(ge=0)]
    skipped_steps: Counter
    rollbacks: Counter


@dataclass
class _Guard:
    """The state of a :class:`GuardedOptimizer`."""

    loss_scale: Annotated[FiniteFloat, Field(gt=0)]
    steps_at_scale: Counter
    lr_factor: Annotated[FiniteFloat, Field(gt=0, le=1)]


@dataclass
class _OptimizerState:
    """The content of ``NAME.optimizer.json``."""

    groups: list[dict[str, Any]]
    guard: _Guard


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
        values["state"] = {counter.name: getattr(self, counter.name) for counter in fields(_Counters)}
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
                saved = read_tensors(folder / f"{name}.safetensors")
                current = network.state_dict()
                network.load_state_dict({key: shard_like(current.get(key), value) for key, value in saved.items()})
            for guard in self.optimizers.values():
                for name, optimizer in guard.optimizers.items():
                    tensors = read_tensors(folder / f"{name}.optimizer.safetensors")
                    values = read_json(folder / f"{name}.optimizer.json", _OptimizerState)
                    _load_optimizer(optimizer, tensors, values.groups)
                    guard.load_state_dict(asdict(values.guard))
            for counter, value in asdict(read_json(folder / "state.json", _Counters)).items():
                setattr(self, counter, value)
            return _read_pending(folder / "log.json")
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"cannot resume from {folder}: {error}") from error


def _read_pending(path: Path) -> list[dict[str, list[float]]]:
    """The log's pending values."""
    pending = read_json(path, list[dict[str, Moments]])
    return [
        {name: [math.nan if value is None else value for value in moments] for name, moments in iteration.items()}
        for iteration in pending
    ]


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

"""The state of a run that training changes, and its saving to and loading from a checkpoint."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor, nn

from onestep.engine.checkpoint import Snapshot, damage, write_checkpoint
from onestep.engine.optimizer import GuardedOptimizer, GuardState
from onestep.engine.shard import full_tensor, is_sharded, shard_like
from onestep.metrics.result import Measurement
from onestep.reading import one_line, read_json, read_tensors

_Count = Annotated[int, Field(ge=0, lt=10**8)]  # the digits of a checkpoint's name
_Moments = Annotated[list[FiniteFloat | None], Field(min_length=4, max_length=4)]  # null: not finite


@dataclass(eq=False)
class Counters:
    """The counters of a run.

    Args:
        iteration: iterations so far.
        seconds: their duration.
        skipped_steps: iterations with a skipped step, in total.
        recent_skips: the same, less half of the iterations without one, but at least 0: the number of consecutive ones
            unless successful iterations lie between them.
        rollbacks: rollbacks to a checkpoint with lower learning rates.
        evaluated: False if an evaluation was interrupted that was due at this iteration.
    """

    iteration: _Count = 0
    seconds: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    skipped_steps: _Count = 0
    recent_skips: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    rollbacks: _Count = 0
    evaluated: bool = True


@dataclass
class _SavedOptimizer:
    kind: str
    guard: GuardState


class TrainingState(Counters):
    """The networks and optimisers of a run by name, and its counters.

    A checkpoint holds full tensors, also of sharded networks: a run can resume with another number of processes.

    Args:
        networks: modules whose ``state_dict`` is saved, averages and running statistics included.
        optimizers: their guarded optimisers.
    """

    def __init__(self, networks: dict[str, nn.Module], optimizers: dict[str, GuardedOptimizer]) -> None:
        super().__init__()
        self.networks, self.optimizers = networks, optimizers

    def snapshot(
        self, values: Mapping[str, Any] | None = None, measured: Sequence[Measurement] = (), keep: bool = True
    ) -> Snapshot | None:
        """A copy of the state on the CPU. Every process must call it.

        Args:
            values: further plain values by file name, such as the log's pending values under ``log``.
            measured: the values that pick the best checkpoints; empty if nothing was measured at this iteration.
            keep: False returns None, for processes that only take part in the gathering of sharded tensors.
        """
        tensors: dict[str, dict[str, Tensor]] = {}
        plain: dict[str, Any] = {"log": [], **(values or {})}
        for name, network in self.networks.items():
            tensors[name] = _copies(network.state_dict(), keep)
        for guard in self.optimizers.values():
            for name, optimizer in guard.optimizers.items():
                tensors[f"{name}.optimizer"] = _copies(_state_tensors(optimizer), keep)
                plain[f"{name}.optimizer"] = {"kind": _kind(optimizer), "guard": asdict(guard.state())}
        plain["state"] = {field.name: getattr(self, field.name) for field in fields(Counters)}
        return Snapshot(self.iteration, tensors, plain, measured) if keep else None

    def save(self, run: Path, keep_last: int) -> Path:
        """Write a checkpoint at once, see :func:`onestep.engine.checkpoint.write_checkpoint`."""
        snapshot = self.snapshot()
        assert snapshot is not None
        return write_checkpoint(run, snapshot, keep_last)

    def load(self, folder: Path) -> list[Any]:
        """Load the checkpoint in ``folder``, and return the log's pending values.

        Of the optimisers only the state is loaded: rates and other options are those of this run.

        Raises:
            ValueError: if it is damaged, before anything is loaded, belongs to a run with other networks or optimisers,
                or has a value that is not finite.
        """
        if reason := damage(folder):
            raise ValueError(f"cannot resume from {folder}: {reason}")
        try:
            self._check_names(folder)
            for name in self.networks:
                self.load_network(name, folder)
            for guard in self.optimizers.values():
                for name, optimizer in guard.optimizers.items():
                    saved = read_json(folder / f"{name}.optimizer.json", _SavedOptimizer)
                    tensors = read_tensors(folder / f"{name}.optimizer.safetensors")
                    _load_optimizer(name, optimizer, saved.kind, tensors)
                    guard.load_state(saved.guard)
            for key, value in asdict(read_json(folder / "state.json", Counters)).items():
                setattr(self, key, value)
            return _read_pending(folder / "log.json")
        except (RuntimeError, ValueError) as error:
            # torch names each tensor in a line of its own
            raise ValueError(f"cannot resume from {folder}: {one_line(error, 500)}") from error

    def load_network(self, name: str, folder: Path) -> None:
        """Load the network ``name`` alone from the checkpoint in ``folder``.

        Raises:
            ValueError, RuntimeError: if it cannot be read or does not fit.
        """
        network, saved = self.networks[name], read_tensors(folder / f"{name}.safetensors")
        current = network.state_dict()
        network.load_state_dict({key: shard_like(current.get(key), value) for key, value in saved.items()})

    def _check_names(self, folder: Path) -> None:
        guards = self.optimizers.values()
        trained = {*self.networks, *(f"{name}.optimizer" for guard in guards for name in guard.optimizers)}
        saved = {path.stem for path in folder.glob("*.safetensors")}
        if saved != trained:
            raise ValueError(f"it holds {', '.join(sorted(saved))}, and this run trains {', '.join(sorted(trained))}")


def _read_pending(path: Path) -> list[dict[str, list[float]]]:
    """The log's pending values."""
    pending = read_json(path, list[dict[str, _Moments]])
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


def _kind(optimizer: torch.optim.Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def _state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimiser's state, named ``<parameter index>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def _load_optimizer(name: str, optimizer: torch.optim.Optimizer, kind: str, tensors: dict[str, Tensor]) -> None:
    """Load a state; a parameter without one starts a new one.

    Raises:
        ValueError: if the state is that of other parameters, or of another kind of optimiser with other tensors.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        index, _, tensor_name = key.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise ValueError(f"{name}.optimizer: {key} is the state of no parameter: the trained parameters differ")
        parameter = parameters[int(index)]
        # Adam's moments have the parameter's shape, its counter of steps is a scalar.
        example = parameter if value.shape == parameter.shape else None
        if example is not None and not is_sharded(example):  # a fused step needs the parameter's memory layout
            value = torch.empty_like(example, dtype=value.dtype, device=value.device).copy_(value)
        state[int(index)][tensor_name] = shard_like(example, value)
    if state:
        _check_kind(name, optimizer, kind, state)
    optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})


def _check_kind(
    name: str, optimizer: torch.optim.Optimizer, kind: str, state: Mapping[int, Mapping[str, Tensor]]
) -> None:
    """Check that ``optimizer`` continues from the ``state`` of a ``kind``, by its state after a step on a copy."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index = min(state, key=lambda index: parameters[index].numel())
    copy = torch.zeros(parameters[index].shape, dtype=parameters[index].dtype, device=parameters[index].device)
    copy.grad = torch.zeros_like(copy)
    trial = type(optimizer).__new__(type(optimizer))
    options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    trial.__dict__ = {**optimizer.__dict__, "state": defaultdict(dict), "param_groups": [{**options, "params": [copy]}]}
    trial.step()
    needed, saved = set(trial.state[copy]), set(state[index])
    for other, values in state.items():
        if set(values) != saved:
            raise ValueError(f"{name}.optimizer: parameter {other} has another state than parameter {index}")
    if needed != saved and not (kind == _kind(optimizer) and needed < saved):
        raise ValueError(
            f"the state of optimizer.{name}, of {kind} ({', '.join(sorted(saved))}), does not fit {_kind(optimizer)} "
            f"({', '.join(sorted(needed)) or 'no state'}): restore the optimizer, or start a new run in another folder"
        )

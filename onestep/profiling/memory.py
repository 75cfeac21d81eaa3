"""The peak memory of an iteration, predicted without a GPU and without the networks' memory.

One iteration of an :class:`~onestep.profiling.outline.Outline` runs on fake tensors. Each storage that an operation
makes is counted until nothing refers to it, as an allocator would. (torch's ``MemTracker`` follows networks that are
called once in an iteration, and refuses the second call of a teacher.)

What has no tensor is not counted: the workspaces of kernels, the CUDA context, and the fragments of an allocator.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed._tools.common_utils import get_untyped_storages
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from onestep.profiling.outline import Outline
from onestep.profiling.watch import Watch

#: What the memory at the peak is made of, beside the parameters of each network.
GRADIENTS, STATES, REST = "gradients", "optimizer states", "activations and samples"


@dataclass(frozen=True)
class Prediction:
    """The largest memory of an iteration.

    Args:
        peak: in bytes.
        parts: bytes at the peak by what they are: "parameters of the NETWORK", each counted for the first network that
            has it, and averages; :data:`GRADIENTS`, :data:`STATES`, and :data:`REST`.
        moment: what ran at the peak, such as "backward pass of the fake score, update of the critics".
    """

    peak: int
    parts: dict[str, int]
    moment: str


class _Storage:
    """The size of a storage in bytes, and what it holds."""

    def __init__(self, kind: str, size: int) -> None:
        self.kind, self.size = kind, size


class Ledger(Watch):
    """Counts the bytes of living storages, and keeps the largest sum.

    Attributes:
        parts: the bytes of each kind.
        peak: the largest sum so far, with its parts and its moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: Counter[str] = Counter()
        self.total = 0
        self.peak = Prediction(0, {}, "")
        self.stepping = ""  # the network whose optimiser steps
        self._storages = WeakIdKeyDictionary()

    def hold(self, tensors: Sequence[Tensor], kind: str, again: bool = True) -> None:
        """Count ``tensors`` as ``kind``; those that are counted already only ``again``."""
        for tensor in tensors:
            for storage in get_untyped_storages(tensor):
                known = self._storages.get(storage)
                if known is None:
                    entry = _Storage(kind, storage.nbytes())
                    self._storages[storage] = entry
                    weakref.finalize(storage, self._add, entry, -1).atexit = False
                    self._add(entry, 1)
                elif again and known.kind != kind:
                    self._add(known, -1)
                    known.kind = kind
                    self._add(known, 1)

    def measure(self, function: Any, args: Any, kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        self.hold([leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)], REST, again=False)
        if self.total > self.peak.peak:
            self.peak = Prediction(self.total, dict(self.parts), self._moment())
        return result

    def _add(self, entry: _Storage, sign: int) -> None:
        self.parts[entry.kind] += sign * entry.size
        self.total += sign * entry.size

    def _moment(self) -> str:
        if self.stepping:
            return f"optimizer step of the {self.stepping}"
        if self.forwards:
            return f"forward pass of the {self.forwards[-1].network}"
        if self.backward is not None and torch._C._current_graph_task_id() != -1:
            return f"backward pass of the {self.backward.network}"
        return "losses"

    @contextmanager
    def following(self, outline: Outline) -> Iterator[None]:
        """Context in which the networks of ``outline``, their gradients and their optimisers are counted."""
        averages = {f"average {name}": one for name, one in outline.parts.averages.networks.items()}
        for name, network in {**outline.networks, **averages}.items():
            self.hold([*network.parameters(), *network.buffers()], f"parameters of the {name}", again=False)
        names = {id(optimizer): name.replace("_", " ") for guarded in outline.parts.optimizers.values()
                 for name, optimizer in guarded.optimizers.items()}  # fmt: skip

        def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self.stepping = names[id(optimizer)]

        def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self.stepping = ""
            self.hold(tree_leaves([list(state.values()) for state in optimizer.state.values()]), STATES)

        def accumulated(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.hold([parameter.grad], GRADIENTS)

        handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
        for parameter in {parameter for module in outline.modules for parameter in module.parameters()}:
            if parameter.requires_grad:
                handles.append(parameter.register_post_accumulate_grad_hook(accumulated))
        try:
            with outline.mode, self, self.watching(outline.networks):
                yield
        finally:
            for handle in handles:
                handle.remove()


def predict(outline: Outline) -> Prediction:
    """The peak memory of an iteration of ``outline`` that has the states of its optimisers, as all but the first."""
    ledger = Ledger()
    with ledger.following(outline):
        make_states(outline)
        ledger.peak = Prediction(0, {}, "")
        reached = 0
        for diagnostics in outline.iteration():
            if ledger.peak.peak > reached:
                reached = ledger.peak.peak
                of_critics = {"fake_score_loss", "discriminator_loss"} & diagnostics.keys()
                moment = f"{ledger.peak.moment}, update of the {'critics' if of_critics else 'generator'}"
                ledger.peak = replace(ledger.peak, moment=moment)
    return ledger.peak


def make_states(outline: Outline) -> None:
    """Make the states of the optimisers, by a step with gradients of zeros."""
    for guarded in outline.parts.optimizers.values():
        for optimizer in guarded.optimizers.values():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

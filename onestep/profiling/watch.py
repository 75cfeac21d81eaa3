"""The network passes of an iteration of fake tensors: each operation is seen, with the pass that it belongs to."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

_KNOWN = "known"  # of nodes of the graphs of earlier passes


@dataclass
class Pass:
    """One call of a network, with its part of the backward pass.

    Args:
        network: name of the network.
        part: "full", "encoder", or "full, graph of the encoder" if only the features keep a graph.
        gradient: the differentiation variables: "nothing", "weights", "input" or "weights and input".
        batch: number of samples.
        update: "critics" or "generator", whose update needs the pass; "images" for the generator's pass.
        forward, backward: FLOPs.
    """

    network: str
    part: str
    gradient: str
    batch: int
    update: str = "images"
    forward: int = 0
    backward: int = 0

    @classmethod
    def of_call(cls, name: str, network: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Self:
        """A new pass for a call of ``network`` with ``inputs`` and ``options``."""
        part = {"features": "encoder"}.get(options.get("outputs", "prediction"), "full")
        if options.get("outputs") == "both" and not options.get("prediction_grad", True) and torch.is_grad_enabled():
            part = "full, graph of the encoder"
        first: Tensor = inputs[0] if isinstance(inputs[0], Tensor) else inputs[0][0]  # features are several
        variables = [
            variable
            for variable, required in (
                ("weights", any(parameter.requires_grad for parameter in network.parameters())),
                ("input", first.requires_grad),
            )
            if required and torch.is_grad_enabled()
        ]
        return cls(name, part, " and ".join(variables) or "nothing", len(first))


class Watch(TorchDispatchMode):
    """Follows the passes of networks through an iteration; a subclass measures their operations.

    Attributes:
        passes: the finished calls, in their order.
        forwards: the running calls, the innermost last.
        backward: the call whose part of the backward pass is running or was the last to run; None before the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[Pass] = []
        self.forwards: list[Pass] = []
        self.backward: Pass | None = None

    @abstractmethod
    def measure(self, function: Any, args: Any, kwargs: Any) -> Any:
        """The result of the operation ``function``."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # becomes operations on the shards, which come back here
        if function is torch.ops.aten._local_scalar_dense.default:
            # Fake tensors have no values: numbers are 1, losses are finite, and the exit step is the first.
            return {torch.bool: True, torch.int64: 0}.get(args[0].dtype, 1.0)
        return self.measure(function, args, kwargs or {})

    @contextmanager
    def watching(self, networks: dict[str, nn.Module]) -> Iterator[None]:
        """Within it every call of one of ``networks`` is a pass."""
        handles = []
        for name, network in networks.items():

            def begin(module: nn.Module, inputs: Any, options: Any, name: str = name) -> None:
                self.forwards.append(Pass.of_call(name, module, inputs, options))

            def end(module: nn.Module, inputs: Any, outputs: Any) -> None:
                self.passes.append(done := self.forwards.pop())
                self._follow(done, outputs if isinstance(outputs, tuple) else (outputs,))

            handles.append(network.register_forward_pre_hook(begin, with_kwargs=True))
            handles.append(network.register_forward_hook(end))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _follow(self, done: Pass, outputs: tuple[Tensor, ...]) -> None:
        """Register hooks on the graph of ``done``, to recognise its part of the backward pass."""

        def enter(*_: Any) -> None:
            self.backward = done

        waiting = [output.grad_fn for output in outputs]
        while waiting:
            node = waiting.pop()
            metadata: Any = None if node is None else node.metadata  # a dict, which torch declares as a method
            if node is None or _KNOWN in metadata:
                continue
            metadata[_KNOWN] = True  # a reference to the node would keep its graph in memory
            node.register_prehook(enter)
            waiting += [following for following, _ in node.next_functions]

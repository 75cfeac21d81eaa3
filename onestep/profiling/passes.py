"""The network passes of an iteration: network, part, differentiated inputs, and FLOPs.

:class:`torch.utils.flop_counter.FlopCounterMode` counts the FLOPs, which are attributed to passes here. The tensors are
fake: nothing is computed, and a count takes seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from onestep.profiling.subject import Subject


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


@dataclass
class Count:
    """The FLOPs of an iteration.

    Args:
        passes: in the order of their calls.
        total: FLOPs of the iteration.
        forward: FLOPs of one forward pass of the generator's network with the same batch size.
        batch_size: samples per iteration.
    """

    passes: list[Pass]
    total: int
    forward: int
    batch_size: int

    @property
    def forward_equivalents(self) -> float:
        """The iteration's FLOPs in forward passes of the generator's network."""
        return self.total / self.forward

    @property
    def gflop_per_image(self) -> float:
        """GFLOP per iteration and sample."""
        return self.total / self.batch_size / 1e9

    def lines(self) -> list[dict[str, Any]]:
        """One record per kind of pass, with the number of passes and their total cost in forward passes."""
        kinds: dict[tuple[str, ...], list[Pass]] = {}
        for one in self.passes:
            kinds.setdefault((one.update, one.network, one.part, one.gradient, str(one.batch)), []).append(one)
        return [
            {
                "update": update,
                "network": network,
                "part": part,
                "differentiated_by": gradient,
                "batch": int(batch),
                "times": len(passes),
                "forward": sum(one.forward for one in passes) / self.forward,
                "backward": sum(one.backward for one in passes) / self.forward,
            }
            for (update, network, part, gradient, batch), passes in kinds.items()
        ]


class _Recorder(TorchDispatchMode):
    """Attributes the FLOPs of ``counter`` to the running pass; it gets every operation before the counter."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter
        self.passes: list[Pass] = []
        self.forwards: list[Pass] = []  # of the running calls
        self.backward: Pass | None = None
        self.known: set[Any] = set()  # nodes of the graphs of earlier passes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            # Fake tensors have no values: numbers are 1, losses are finite, and the exit step is the first.
            return {torch.bool: True, torch.int64: 0}.get(args[0].dtype, 1.0)
        before = self.counter.get_total_flops()
        result = function(*args, **(kwargs or {}))
        spent = self.counter.get_total_flops() - before
        if self.forwards:
            self.forwards[-1].forward += spent
        elif self.backward is not None:
            self.backward.backward += spent
        return result

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
            if node is None or node in self.known:
                continue
            self.known.add(node)
            node.register_prehook(enter)
            waiting += [following for following, _ in node.next_functions]


def count(subject: Subject) -> Count:
    """Count an iteration of the ``subject``, without changing it; for several steps, the first step is trained."""
    counter = FlopCounterMode(display=False)
    recorder = _Recorder(counter)
    inputs = torch.zeros(subject.batch_size, *subject.parts.student.noise_shape, device=subject.parts.run.device)
    sigma = torch.ones(subject.batch_size, device=inputs.device)
    with FakeTensorMode(allow_non_fake_inputs=True), subject.unchanged():
        with FlopCounterMode(display=False) as alone, torch.no_grad():
            subject.networks["generator"](inputs, sigma, subject.data[0][1])
        with counter, recorder, recorder.watching(subject.networks):
            counted = 0
            for diagnostics in subject.iteration():
                of_critics = {"fake_score_loss", "discriminator_loss"} & diagnostics.keys()
                update = "critics" if of_critics else "generator"
                for one in recorder.passes[counted:]:
                    one.update = "images" if one.network == "generator" else update
                counted = len(recorder.passes)
    return Count(recorder.passes, counter.get_total_flops(), alone.get_total_flops(), subject.batch_size)

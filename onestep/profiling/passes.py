"""The passes of an iteration: which network, how much of it, differentiated by what, and the FLOPs of each.

The FLOPs are those of :class:`torch.utils.flop_counter.FlopCounterMode`; here each is put down to the pass that spends
it. They are counted on tensors without values: nothing is computed, and it takes seconds.
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
    """One call of a network, and its share of the backward pass.

    Args:
        network: its name.
        part: "whole", "encoder", or "whole, graph of the encoder" where the features alone keep a graph.
        gradient: by what it is differentiated: "nothing", "weights", "input" or "weights and input".
        batch: samples.
        update: of which network this is a part; "images" for the generator's own pass.
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
        """The pass that a call of ``network`` with ``inputs`` and ``options`` begins."""
        part = {"features": "encoder"}.get(options.get("outputs", "prediction"), "whole")
        if options.get("outputs") == "both" and not options.get("prediction_grad", True) and torch.is_grad_enabled():
            part = "whole, graph of the encoder"
        by = [
            what
            for what, wanted in (
                ("weights", any(parameter.requires_grad for parameter in network.parameters())),
                ("input", inputs[0].requires_grad),
            )
            if wanted and torch.is_grad_enabled()
        ]
        return cls(name, part, " and ".join(by) or "nothing", len(inputs[0]))


@dataclass
class Count:
    """What an iteration spends.

    Args:
        passes: in the order of their calls.
        total: FLOPs of the iteration.
        forward: FLOPs of one forward of the generator's network on as many samples.
        batch_size: samples of an iteration.
    """

    passes: list[Pass]
    total: int
    forward: int
    batch_size: int

    @property
    def forward_equivalents(self) -> float:
        """The iteration's cost in forwards of the generator's network."""
        return self.total / self.forward

    @property
    def gflop_per_image(self) -> float:
        """GFLOP an iteration and sample."""
        return self.total / self.batch_size / 1e9

    def lines(self) -> list[dict[str, Any]]:
        """The passes, those of one kind together, with their cost in forward-equivalents of all of them."""
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
    """Puts what ``counter`` counts down to the pass that is running; it sees every operation before the counter."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter
        self.passes: list[Pass] = []
        self.forwards: list[Pass] = []  # of the calls that are under way
        self.backward: Pass | None = None
        self.known: set[Any] = set()  # nodes of the graphs of earlier passes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            # A value is asked for where there is none: each is 1, a loss finite, the step of a generator the first.
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
        """Let the backward pass say when it goes through the graph that ``done`` has made."""

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
    """Count an iteration of the ``subject``, which is left as it was; a few-step generator's first step."""
    counter = FlopCounterMode(display=False)
    recorder = _Recorder(counter)
    inputs = torch.zeros(subject.batch_size, *subject.parts.student.noise_shape, device=subject.parts.run.device)
    sigma = torch.ones(subject.batch_size, device=inputs.device)
    with FakeTensorMode(allow_non_fake_inputs=True), subject.unchanged():
        with FlopCounterMode(display=False) as alone, torch.no_grad():
            subject.networks["generator"](inputs, sigma, subject.condition)
        with counter, recorder, recorder.watching(subject.networks):
            counted = 0
            for diagnostics in subject.iteration():
                update = "generator" if "generator_gradient" in diagnostics else "fake score"
                for one in recorder.passes[counted:]:
                    one.update = "images" if one.network == "generator" else update
                counted = len(recorder.passes)
    return Count(recorder.passes, counter.get_total_flops(), alone.get_total_flops(), subject.batch_size)

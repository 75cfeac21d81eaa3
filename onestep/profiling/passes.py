"""The network passes of an iteration: network, part, differentiated inputs, and FLOPs.

:class:`torch.utils.flop_counter.FlopCounterMode` counts the FLOPs, which are attributed to passes here. The tensors are
fake: nothing is computed, and a count takes seconds.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from onestep.profiling.subject import Subject
from onestep.profiling.watch import Pass, Watch


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


class _Flops(Watch):
    """Attributes the FLOPs of ``counter`` to the running pass; it gets every operation before the counter."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter

    def measure(self, function: Any, args: Any, kwargs: Any) -> Any:
        before = self.counter.get_total_flops()
        result = function(*args, **kwargs)
        spent = self.counter.get_total_flops() - before
        if self.forwards:
            self.forwards[-1].forward += spent
        elif self.backward is not None:
            self.backward.backward += spent
        return result


def count(subject: Subject) -> Count:
    """Count an iteration of the ``subject``, without changing it; for several steps, the first step is trained."""
    counter = FlopCounterMode(display=False)
    recorder = _Flops(counter)
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

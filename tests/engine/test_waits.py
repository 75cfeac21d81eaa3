"""Within an iteration the host waits for the device once an update: to see that the step is finite."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from onestep.profiling.subject import Subject


class AskedValues(TorchDispatchMode):
    """Counts the operations that hand a tensor's values to Python, for which a device would be waited for."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal)
        self.count += function.overloadpacket in waits
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("process_as_it_was")
@pytest.mark.parametrize("objective", ["f_distill", "sida", "uni_instruct"])
def test_one_wait_an_update(objective: str) -> None:
    # A law of sigma that would check what it is asked for, and a normalizer that asks it.
    overrides = [f"objective={objective}", "sigma=log_normal", "fake_score.steps=3", "device=cpu"]
    subject = Subject("digits", overrides, 2)
    list(subject.iteration())
    with AskedValues() as asked:
        updates = len(list(subject.iteration()))
    assert updates == 3 + 1
    assert asked.count == updates + 1  # and the step of the generator that is trained, which is drawn on the host

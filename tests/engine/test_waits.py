"""The host waits for the device once per update of an iteration, to check that the step is finite."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from onestep.profiling.subject import Subject
from tests.helpers.configs import CPU


class AskedValues(TorchDispatchMode):
    """Counts the operations that pass a tensor's values to Python and so synchronise with the device."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal)
        self.count += function.overloadpacket in waits
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("process_as_it_was")
@pytest.mark.parametrize("objective", ["f_distill", "sida", "uni_instruct"])
def test_one_wait_an_update(objective: str) -> None:
    # A distribution of sigma that would validate its input, and a normalizer that calls it.
    overrides = [f"objective={objective}", "sigma=log_normal", "fake_score.steps=3", CPU]
    subject = Subject("digits", overrides, 2)
    list(subject.iteration())
    with AskedValues() as asked:
        updates = len(list(subject.iteration()))
    assert updates == 3 + 1
    assert asked.count == updates + 1  # plus the generator's exit step, which is sampled on the host

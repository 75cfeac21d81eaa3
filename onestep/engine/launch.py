"""Launch of a run with several processes, and accelerate's state."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.state import AcceleratorState, GradientState, PartialState


def join_submitit_job() -> None:
    """In a submitit job of several tasks, set the environment variables that torchrun would set.

    No effect outside submitit, or after another launcher has set them.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ or "RANK" in os.environ:
        return
    from submitit.helpers import TorchDistributedEnvironment  # it started this process, so it is installed

    environment = TorchDistributedEnvironment()
    if environment.world_size > 1:
        environment.export(set_cuda_visible_devices=False)


@contextmanager
def separate_accelerate_state() -> Iterator[None]:
    """Context with a new state of accelerate, which has one device and precision for all accelerators of a process."""
    states = [state._shared_state for state in (AcceleratorState, PartialState, GradientState)]
    kept = [dict(state) for state in states]
    try:
        for state in states:
            state.clear()
        yield
    finally:
        for state, values in zip(states, kept, strict=True):
            state.clear()
            state.update(values)

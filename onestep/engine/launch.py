"""Launch of a run with several processes, and accelerate's state."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.state import AcceleratorState, GradientState, PartialState

#: Variables of a process that has been started as one of several: by torchrun, Open MPI, MPICH and MVAPICH.
_RANKS = {"RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"}


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


def check_launch() -> None:
    """Check that ``accelerate launch`` has started as many processes as it was asked for.

    Without GPUs it starts one, for any ``--num_processes``; the address of a main process then shows that there should
    be several.

    Raises:
        ValueError: if it has not.
    """
    several = {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys()
    if several and not _RANKS & os.environ.keys():
        raise ValueError(
            "accelerate launch has started one process for --num_processes=2 or more, as it does without GPUs: use "
            "torchrun --nproc_per_node 2 -m onestep ..."
        )


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

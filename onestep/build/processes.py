"""The processes of a command. Sampling imports this alone of what a run needs: importing a run takes long."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from onestep.engine.launch import separate_accelerate_state


@contextmanager
def separate_processes() -> Iterator[None]:
    """Context with accelerate's state; the group of processes that it starts ends with the program.

    The next command of a program, or job of a sweep, takes the same group: a second one could find the addresses of
    the first in the launcher's store, and would wait for them in vain.
    """
    with separate_accelerate_state():
        try:
            yield
        except BaseException:
            atexit.unregister(_end_group)  # the other processes may be gone, and the end would wait for them
            raise
        atexit.register(_end_group)


def _end_group() -> None:
    """End the group of processes and its threads: one that works at the end of the interpreter aborts the program.

    The threads end with the last reference to the group. Sharded networks hold it in cycles of references.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()

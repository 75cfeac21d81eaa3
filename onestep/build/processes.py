"""The processes of a command. Sampling imports this alone of what a run needs: importing a run takes long."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from onestep.engine.launch import separate_accelerate_state


@contextmanager
def separate_processes() -> Iterator[None]:
    """Context with accelerate's state and, at its end, without the group of processes that it starts.

    The group stays for the next job of a sweep: a second group could find the addresses of the first one.
    """
    with separate_accelerate_state():
        yield
        if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
            PartialState().destroy_process_group()

"""Launch of a run with several processes."""

import os


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

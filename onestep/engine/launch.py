"""How the processes of a run find each other."""

import os


def join_submitit_job() -> None:
    """In a job of several tasks that submitit started, tell torch what torchrun would have told it.

    Nothing is done elsewhere, nor where a launcher has been there before.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ or "RANK" in os.environ:
        return
    from submitit.helpers import TorchDistributedEnvironment  # installed, as it started this process

    environment = TorchDistributedEnvironment()
    if environment.world_size > 1:
        environment.export(set_cuda_visible_devices=False)

"""Errors of the machine in one line: memory, data loading processes, and other processes of the run."""

import torch
from torch.distributed import DistError

from onestep.processes import rank_and_count
from onestep.reading import one_line


def explain_failure(error: BaseException) -> str | None:
    """The line of an error of the machine, with what to change; None for any other error."""
    text = one_line(error, 500)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in text:
        return (
            f"out of memory{': ' if text else ''}{text}. Lower the batch size (training.batch_size, "
            "evaluation.batch_size; batch_size of onestep sample), raise training.accumulation, or set "
            "gradient_checkpointing=true"
        )
    if isinstance(error, RuntimeError) and text.startswith("DataLoader"):
        return (
            f"a reading process failed: {text}. Its file system hangs or its memory is full: lower num_workers; "
            "num_workers=0 reads in the training process"
        )
    if isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in text):
        return f"process {rank_and_count()[0]} failed, perhaps because another one died or hangs: {text}"
    return None

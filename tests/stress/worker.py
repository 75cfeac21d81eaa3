"""One process of a distillation: ``worker.py DTYPE OVERRIDE...``, in DTYPE from the data to the weights.

Nothing is sampled or evaluated: samplers and features are float32's.
"""

import atexit
import sys
from contextlib import nullcontext

import pytest
import torch

from onestep.build.distillation import distill
from onestep.config import compose
from onestep.distillation.report import DistillationReport
from tests.helpers.harness import check_threads
from tests.helpers.recordings import double_precision


def train(dtype: str, *overrides: str) -> None:
    """Run the distillation of the ``overrides`` in this process."""
    with pytest.MonkeyPatch.context() as patch, double_precision() if dtype == "float64" else nullcontext():
        patch.setattr(DistillationReport, "interim", lambda *_: [])
        patch.setattr(DistillationReport, "final", lambda *_: {})
        distill(compose("train", [*overrides, "metrics=[]"]))


if __name__ == "__main__":
    atexit.register(check_threads)  # before the command's own functions, so that it runs after them
    torch.set_num_threads(1)
    train(*sys.argv[1:])

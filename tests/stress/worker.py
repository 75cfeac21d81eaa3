"""One process of a distillation: ``worker.py DTYPE OVERRIDE...``, in DTYPE from the data to the weights.

Nothing is sampled or evaluated: samplers and features are float32's.
"""

import atexit
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from onestep.build.distillation import distill
from onestep.config import compose
from onestep.distillation.report import DistillationReport
from tests.helpers.recordings import double_precision

dtype, *overrides = sys.argv[1:]


@atexit.register  # before the command's own functions, so that it runs after them
def check_threads() -> None:
    """End with an exit code if a thread of gloo is left: it can abort the program."""
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    if left := [name for name in names if "gloo" in name]:
        print(f"threads at the end: {left}", flush=True)
        os._exit(9)


torch.set_num_threads(1)
DistillationReport.interim = lambda *_: []  # type: ignore[method-assign]
DistillationReport.final = lambda *_: {}  # type: ignore[method-assign]
with double_precision() if dtype == "float64" else nullcontext():
    distill(compose("train", [*overrides, "metrics=[]"]))

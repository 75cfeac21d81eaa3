"""One process of a distillation: ``worker.py DTYPE OVERRIDE...``, in DTYPE from the data to the weights.

Nothing is sampled or evaluated: samplers and features are float32's.
"""

import sys
from contextlib import nullcontext

import torch

from onestep.build.distillation import distill
from onestep.config import compose
from onestep.distillation.report import DistillationReport
from tests.helpers.recordings import double_precision

dtype, *overrides = sys.argv[1:]
torch.set_num_threads(1)
DistillationReport.interim = lambda *_: []  # type: ignore[method-assign]
DistillationReport.final = lambda *_: {}  # type: ignore[method-assign]
with double_precision() if dtype == "float64" else nullcontext():
    distill(compose("train", [*overrides, "metrics=[]"]))

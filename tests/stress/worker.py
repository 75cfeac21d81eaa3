"""One process of a distillation: ``worker.py CONF DTYPE OVERRIDE...``, in DTYPE from the data to the weights.

Nothing is drawn or scored: samplers and features are float32's.
"""

import sys
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from onestep.build.distillation import distill
from onestep.config import instantiate
from onestep.data.dataset import ImagesInMemory
from onestep.distillation import build
from onestep.distillation.report import DistillationReport
from onestep.models.edm.denoiser import EDMDenoiser

conf, dtype, *overrides = sys.argv[1:]
torch.set_num_threads(1)
torch.set_default_dtype(getattr(torch, dtype))


def instantiate_in_dtype(node: Any) -> Any:
    """What ``node`` describes, its tensors in the default type."""
    built = instantiate(node)
    if isinstance(built, EDMDenoiser):
        built.to(torch.get_default_dtype())
    if isinstance(built, ImagesInMemory):
        built.images = built.images.to(torch.get_default_dtype())
        built.labels = None if built.labels is None else built.labels.to(torch.get_default_dtype())
    return built


trainable = vars(build)["_trainable"]  # which copies in float32
vars(build)["instantiate"] = instantiate_in_dtype
vars(build)["_trainable"] = lambda *arguments: trainable(*arguments).to(torch.get_default_dtype())
DistillationReport.interim = lambda *_: None  # type: ignore[method-assign]
DistillationReport.final = lambda *_: {}  # type: ignore[method-assign]
with initialize_config_dir(conf, version_base="1.3"):
    config = compose("train", [*overrides, "metrics=[]"])
distill(config)

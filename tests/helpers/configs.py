"""Configurations of the tests: all on the CPU, and those of trainings so small that a test can afford them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from onestep.build.distillation import distill
from onestep.config import check_config, compose

Configure = Callable[..., DictConfig]

CPU = "device=cpu"
#: Six iterations at the full learning rate, evaluated twice, with a checkpoint after each.
TINY = (
    CPU, "precision=no", "sampler.steps=2",
    "evaluation.samples=32", "evaluation.interim_samples=16", "evaluation.batch_size=16", "evaluation.grid=10",
    "training.total_images=96", "training.batch_size=16", "training.warmup_images=0", "training.log_every=1",
    "training.checkpoint_every=1", "training.evaluate_every=3", "training.keep_last=6", "training.max_skipped_steps=1",
)  # fmt: skip
#: Behind TINY: two iterations of four images, for networks that cost more.
TWO_ITERATIONS = (
    "training.total_images=8", "training.batch_size=4",
    "evaluation.samples=4", "evaluation.interim_samples=4", "evaluation.batch_size=4", "evaluation.grid=4",
)  # fmt: skip
FEW_STEPS = ("generator.later_sigmas=[0.5,0.2]",)


def configure(name: str, *overrides: str) -> DictConfig:
    """The configuration that the command of the primary file ``name`` would have of ``overrides``, on the CPU."""
    return compose(name, [CPU, *overrides])


def tiny_config(output: Path, *overrides: str) -> DictConfig:
    """The configuration of a tiny distillation into ``output``, of the digits unless an experiment is given."""
    recipe = [] if any(override.startswith("experiment=") for override in overrides) else ["experiment=digits"]
    return configure("train", *recipe, *TINY, "fake_score.steps=1", f"output={output}", *overrides)


def tiny_pretraining(output: Path, *overrides: str) -> DictConfig:
    """The configuration of a tiny pretraining into ``output``."""
    return configure("pretrain", *TINY, f"output={output}", *overrides)


def refused(config: DictConfig, task: Callable[[DictConfig], Any] = distill) -> str:
    """The message of ``task``'s error for the configuration."""
    with pytest.raises(ValueError) as caught:
        check_config(config)
        task(config)
    return str(caught.value)

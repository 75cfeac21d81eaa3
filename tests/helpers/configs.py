"""Configurations of the tests: all on the CPU, and those of trainings so small that a test can afford them."""

import pickle
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onestep.build.distillation import distill
from onestep.config import CONF, check_config, compose, keys_of

Configure = Callable[..., DictConfig]

CPU = "device=cpu"
#: Six iterations at the full learning rate, evaluated twice, with a checkpoint after each.
TINY = (
    CPU, "precision=no", "sampler.steps=2",
    "evaluation.samples=32", "evaluation.interim_samples=16", "evaluation.batch_size=16", "evaluation.grid=10",
    "training.total_images=96", "training.batch_size=16", "training.warmup_images=0", "training.log_every=1",
    "training.checkpoint_every=1", "training.evaluate_every=3", "training.keep_last=6", "training.max_skipped_steps=1",
)  # fmt: skip
#: No diagnosis, and nothing held out for one: for trainings that are tested in other respects.
NO_DIAGNOSIS = ("diagnosis.samples=0", "diagnosis.held_out=0")
#: Behind TINY: two iterations of four images, for networks that cost more.
TWO_ITERATIONS = (
    "training.total_images=8", "training.batch_size=4",
    "evaluation.samples=4", "evaluation.interim_samples=4", "evaluation.batch_size=4", "evaluation.grid=4",
)  # fmt: skip
FEW_STEPS = ("generator.later_sigmas=[0.5,0.2]",)


def configure(name: str, *overrides: str) -> DictConfig:
    """The configuration that the command of the primary file ``name`` would have of ``overrides``, on the CPU.

    Hydra composes each set of choices once. Settings are changed in a copy, as Hydra does behind the choices, or left
    to Hydra where they do not fit, or where a key is deleted, which may be one of theirs.
    """
    if any(one.startswith("~") for one in overrides):
        return compose(name, [CPU, *overrides])
    settings = [one for one in overrides if _is_setting(one)]
    config: DictConfig = pickle.loads(_composed(name, tuple(one for one in overrides if one not in settings)))
    try:
        for parsed in map(_parsed, settings):
            OmegaConf.update(config, parsed.key_or_group, parsed.value(), merge=True)
            config.given += keys_of({parsed.key_or_group: parsed.value()})
    except OmegaConfBaseException:
        return compose(name, [CPU, *overrides])
    return config


@cache
def _composed(name: str, overrides: tuple[str, ...]) -> bytes:
    """As bytes, whose copy takes a fifth of the time of a configuration's."""
    return pickle.dumps(compose(name, [CPU, *overrides]))


@cache
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _is_setting(override: str) -> bool:
    """True for ``KEY=VALUE`` whose key is no group of choices."""
    key = override.partition("=")[0]
    return key.replace(".", "").isidentifier() and not (CONF / key).is_dir()


def tiny_config(output: Path, *overrides: str) -> DictConfig:
    """The configuration of a tiny distillation into ``output``, of the digits unless an experiment is given."""
    recipe = [] if any(override.startswith("experiment=") for override in overrides) else ["experiment=digits"]
    small = (*TINY, *NO_DIAGNOSIS, "fake_score.steps=1")
    return as_given(configure("train", *recipe, *small, f"output={output}", *overrides), overrides)


def as_given(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The ``config`` with the ``overrides`` alone as those of the user; the others are those of a recipe."""
    typed = {override.lstrip("+").partition("=")[0] for override in overrides}
    config.given = [key for key in config.given if key in typed]
    return config


def tiny_pretraining(output: Path, *overrides: str) -> DictConfig:
    """The configuration of a tiny pretraining into ``output``."""
    return configure("pretrain", *TINY, f"output={output}", *overrides)


def refused(config: DictConfig, task: Callable[[DictConfig], Any] = distill) -> str:
    """The message of ``task``'s error for the configuration."""
    with pytest.raises(ValueError) as caught:
        check_config(config)
        task(config)
    return str(caught.value)

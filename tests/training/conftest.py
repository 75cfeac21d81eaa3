"""Settings of a training, of which a test gives those that it is about."""

from collections.abc import Callable
from typing import Any

import pytest
from accelerate import Accelerator

from onestep.training.settings import DistillationSettings


@pytest.fixture
def make_settings() -> Callable[..., DistillationSettings]:
    """Builds settings of 100 steps of 10 images without warm-up, decay or clipping that bites."""

    def build(**changes: Any) -> DistillationSettings:
        values: dict[str, Any] = {
            "images": 1000,
            "batch_size": 10,
            "warmup_images": 0,
            "final_lr": 1.0,
            "grad_clip": 1e6,
            "ema_halflife": 100.0,
            "ema_rampup": 0.05,
            "log_every": 1,
            "checkpoint_every": 10,
            "evaluate_every": 10,
            "keep_last": 2,
            "accumulation": 1,
            "max_bad_steps": 1,
            "retreats": 0,
            "retreat_rate": 0.5,
            "sigma_init": 2.5,
            "later_sigmas": [],
            "fake_score_steps": 1,
            "fresh_latents": False,
            "gan_weight": 0.0,
            "regression_weight": 0.0,
            "discriminator_weight": 1.0,
            "fake_score_guidance": 1.0,
        }
        assert changes.keys() <= values.keys()
        return DistillationSettings(**(values | changes))

    return build


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    """One process on the CPU."""
    return Accelerator(cpu=True)

"""Settings of a training, of which a test gives those that it is about; and runs that several files look at."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor

from onestep.training.distillation import distill
from onestep.training.settings import DistillationSettings
from onestep.training.writing import SampleWriter

TrainConfig = Callable[..., DictConfig]

FEW_STEPS = ("training.later_sigmas=[0.5,0.2]",)


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


@pytest.fixture(scope="session")
def few_step_run(train_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished distillation into a generator of three steps; not to be written to."""
    folder = tmp_path_factory.mktemp("few_steps") / "run"
    distill(train_config(folder, *FEW_STEPS))
    return folder


@pytest.fixture
def dmd(tmp_path: Path) -> tuple[str, ...]:
    """The overrides of DMD with 24 pairs in a cache of the test's own."""
    return ("objective=dmd", "pairs.count=24", "pairs.batch_size=8", f"pairs.cache={tmp_path / 'pairs'}")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The images of every call of ``sample``, before they are quantised."""
    kept: list[Tensor] = []
    finish = SampleWriter.finish

    def finish_and_keep(writer: SampleWriter, images: Tensor, seeds: range) -> Path:
        kept.append(images)
        return finish(writer, images, seeds)

    monkeypatch.setattr(SampleWriter, "finish", finish_and_keep)
    return kept

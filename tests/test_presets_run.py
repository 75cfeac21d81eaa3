"""Every preset runs by its name alone, and trains the networks that its method trains."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from onestep.training.distillation import distill
from onestep.training.log import read_log

# What a log line says of the judges, and the updates of the fake score for one of the generator.
EXPECTED = {
    "sds": (set(), 0),
    "diff_instruct": ({"fake_score_loss"}, 2),
    "vsd": ({"fake_score_loss"}, 2),
    "dmd": ({"fake_score_loss", "regression_loss"}, 1),
    "dmd2": ({"fake_score_loss", "discriminator_loss", "adversarial_loss"}, 5),
    "f_distill": ({"fake_score_loss", "discriminator_loss", "adversarial_loss"}, 2),
    "sim": ({"fake_score_loss"}, 2),
    "sid": ({"fake_score_loss"}, 2),
    "sida": ({"fake_score_loss", "discriminator_loss", "adversarial_loss"}, 2),
    "sid_lsg": ({"fake_score_loss"}, 2),
    "uni_instruct": ({"fake_score_loss", "discriminator_loss", "adversarial_loss"}, 2),
}
TINY = ("device=cpu", "precision=no", "sampler.steps=2", "evaluation.samples=16", "evaluation.interim_samples=16",
        "training.images=32", "training.batch_size=16", "training.warmup_images=0", "training.log_every=1")  # fmt: skip


@pytest.mark.parametrize("preset", EXPECTED)
def test_a_preset_trains_what_it_should(
    preset: str, compose_config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pairs = ("pairs.count=16", "pairs.batch_size=16") if preset == "dmd" else ()
    config = compose_config("train", f"objective={preset}", *TINY, *pairs, f"output={tmp_path / 'run'}")
    losses, steps = EXPECTED[preset]
    assert steps in (0, config.training.fake_score_steps)
    distill(config)
    lines = [line for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line]
    assert len(lines) == 2
    assert {key for key in lines[-1] if key.endswith("_loss")} == losses
    assert lines[-1]["generator_gradient"] > 0
    assert (tmp_path / "run" / "checkpoints" / "cycle_00000002" / "fake_score.safetensors").exists() == (steps > 0)

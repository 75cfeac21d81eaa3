"""data=none: methods without a discriminator train on the teacher alone; settings that need images are rejected."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onestep.build.distillation import distill
from onestep.data.dataset import NoData
from onestep.data.digits import Digits
from onestep.engine.log import read_log
from onestep.seeding import BatchRandom
from tests.helpers.configs import refused, tiny_config

FREE = ("data=none", "discriminator=none", "divergence=reverse_kl", "generator.gan_weight=0")


@pytest.mark.parametrize("objective", ["sid", "sds", "diff_instruct", "vsd", "sim", "sid_lsg"])
def test_a_method_without_data(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled digits are the only images, and the run reads none."""
    monkeypatch.setattr(Digits, "__init__", None)
    small = ("training.total_images=32", "training.evaluate_every=10", "evaluation.samples=4",
             "evaluation.interim_samples=4", "evaluation.grid=4")  # fmt: skip
    run = ("metrics=[]", f"objective={objective}", "data=none", *small)
    summary = distill(tiny_config(tmp_path / "run", *run))
    assert summary["images_seen"] == 32
    losses = [line["loss"] for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line]
    assert len(losses) == 2 and all(torch.tensor(losses).isfinite())


def test_labels_are_uniform_and_depend_on_iteration_and_place_alone() -> None:
    data = NoData((1, 8, 8), 4)

    def labels(iteration: int, rows: slice = slice(1000)) -> torch.Tensor:
        images, condition = data.batch(BatchRandom(0, 0, iteration, 2, batch_size=1000, rows=rows))
        assert images is None and condition.keys() == {"labels"}
        return condition["labels"]

    batch = labels(3)
    assert batch.shape == (1000, 4) and (batch.sum(1) == 1).all()
    assert (batch.sum(0) - 250).abs().max() <= 55  # four standard deviations
    assert torch.equal(torch.cat([labels(3, slice(0, 400)), labels(3, slice(400, 1000))]), batch)
    assert not torch.equal(labels(4), batch)
    assert NoData((1, 8, 8), 0).batch(BatchRandom(0, batch_size=2, rows=slice(2))) == (None, {})


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (("data=none", "metrics=[]"), "the discriminator needs real images, and this data has none"),
        ((*FREE, "metrics=[fid]"), r"metrics=['fid'] need real images, and there are none: give data=..."),
    ],
)
def test_images_that_are_needed(overrides: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    assert refused(tiny_config(tmp_path / "run", *overrides)).startswith(expected)


def test_prompts_are_data_of_their_own(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    given = (
        "experiment=text_to_image",
        "data=none",
        f"teacher.path={pipelines('sd')}",
        *FREE,
        "generator.sigma_init=14.6",
    )
    message = refused(tiny_config(tmp_path / "run", *given))
    assert "teacher takes encoder_hidden_states: use data=prompts data.path=..." in message

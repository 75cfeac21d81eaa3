"""The instruments of a distillation: what they measure, and that they change no training."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from onestep.build.distillation import build_distillation
from onestep.config import compose
from onestep.distillation.diagnosis import PREFIX, Diagnosis, level_names, summarize
from onestep.distillation.parts import Distillation
from onestep.distillation.refit import refitted
from onestep.distillation.spread import spread_of
from onestep.engine.log import read_log
from onestep.seeding import seeded_rng
from tests.helpers.configs import tiny_config
from tests.helpers.updates import take_updates

#: Of 1,797 digits; one batch of samples.
WITH_DIAGNOSIS = ("diagnosis.samples=16", "diagnosis.held_out=40", "metrics=[]")
LEVELS = 4


def diagnosed(folder: Path, *overrides: str) -> tuple[Distillation, dict[str, float]]:
    """The parts of a run that has not been trained, and the values after its iteration 5."""
    parts = build_distillation(tiny_config(folder, *WITH_DIAGNOSIS, *overrides))
    return parts, Diagnosis(parts)(5)


def names_of(values: dict[str, float]) -> set[str]:
    """The names of ``values``, those of all levels once."""
    return {name.partition("/")[0] for name in values}


def test_a_training_is_the_same_with_and_without_a_diagnosis(tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    """To the last bit. Its lines are logged at the two evaluations."""
    runs = []
    for samples in (16, 0):
        run = tiny_run("output=" + str(tmp_path / str(samples)), *WITH_DIAGNOSIS, f"diagnosis.samples={samples}")
        runs.append(run.with_name(str(samples)))
    weights = [load_file(run / "generator_raw" / "diffusion_pytorch_model.safetensors") for run in runs]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    lines, without = (read_log(run / "log.jsonl") for run in runs)
    assert [line for line in lines if not any(name.startswith(PREFIX) for name in line)] == without
    of_diagnosis = [line for line in lines if f"{PREFIX}fake_score_lag" in line]
    assert [line["iteration"] for line in of_diagnosis] == [3, 6]


CRITIC = {"jensen_shannon", "forward_kl", "reverse_kl", "ratio_mean", "inverse_ratio_mean", "overfitting",
          "overfitting_error"}  # fmt: skip
OF_SAMPLES = {"spread", "diversity", "contrast", "sharpness"}  # of grey pictures
ALL = CRITIC | OF_SAMPLES | {"log_ratio_size", "effective_samples", "weight_10", "weight_90", "score_gap",
                             "fake_score_lag"}  # fmt: skip


@pytest.mark.parametrize(
    "overrides, absent",
    [
        ((), set[str]()),
        (("diagnosis.held_out=0",), CRITIC),
        (("divergence=reverse_kl",), {"effective_samples", "weight_10", "weight_90"}),
        (("objective=sid", "data=none"), ALL - OF_SAMPLES - {"score_gap", "fake_score_lag"}),
        (("objective=sds",), ALL - OF_SAMPLES),
        (
            ("objective=adversarial",),
            {"effective_samples", "weight_10", "weight_90", "score_gap", "fake_score_lag"},
        ),
        (("diagnosis.samples=0",), ALL),
        (("generator.later_sigmas=[0.5,0.2]", "generator.labels=uniform"), set[str]()),
    ],
)
def test_values_of_parts_that_a_method_has_not_are_absent(
    overrides: tuple[str, ...], absent: set[str], tmp_path: Path
) -> None:
    _, values = diagnosed(tmp_path, *overrides)
    assert names_of(values) == ALL - absent
    assert all(math.isfinite(value) for value in values.values())


def test_the_values_are_those_of_any_micro_batches(tmp_path: Path) -> None:
    (_, values), (_, in_parts) = (
        diagnosed(tmp_path, "diagnosis.samples=32", f"training.accumulation={count}") for count in (1, 4)
    )
    assert in_parts == pytest.approx(values, rel=1e-4, abs=1e-6)


def test_nothing_is_held_out_without_a_discriminator(tmp_path: Path) -> None:
    parts, _ = diagnosed(tmp_path, "objective=sid")
    assert isinstance(parts.data.held_out, tuple) and not parts.data.held_out  # type: ignore[union-attr]
    parts, _ = diagnosed(tmp_path)
    assert len(parts.data.held_out) == 40  # type: ignore[union-attr]


def test_the_refit_lowers_a_loss_and_is_undone(tmp_path: Path) -> None:
    """A line through the origin is fitted to y = 3 x in steps of 0.3 % of the weight."""
    line = torch.nn.Linear(1, 1, bias=False)
    before = line.weight.detach().clone()
    x = torch.randn(64, 1, generator=seeded_rng(0))

    def loss(samples: torch.Tensor) -> torch.Tensor:
        return (line(samples) - 3 * samples).square().flatten()

    with torch.no_grad(), refitted(line, [list(x.chunk(2))] * 8, loss):
        change = line.weight - before
        assert float(change.abs()) == pytest.approx(8 * 0.003 * float(before.abs()), rel=1e-3)
        assert change > 0
    assert torch.equal(line.weight, before) and line.weight.grad is None


def test_a_refit_that_fails_is_undone(tmp_path: Path) -> None:
    line = torch.nn.Linear(1, 1)
    before = line.weight.detach().clone()

    def loss(samples: torch.Tensor) -> torch.Tensor:
        if not torch.equal(line.weight, before):
            raise RuntimeError("out of memory")
        return line(samples).square().flatten()

    with pytest.raises(RuntimeError, match="memory"), refitted(line, [[torch.ones(2, 1)]] * 2, loss):
        pass
    assert torch.equal(line.weight, before)


def test_summary_of_known_columns() -> None:
    """Two samples in each of two bins."""
    columns: dict[str, Any] = {
        "bin": [0, 0, 1, 1], "loss": [2, 2, 4, 4], "refitted_loss": [1, 2, 3, 3], "squared_gap": [1, 3, 0, 0],
        "generated": [-1, -3, 0, 0], "log_ratio": [-1, -3, 0, 0], "weight": [0, 4, 1, 1],
        "image": [0, 1, 0, 1], "real": [2, 2, -1, -1], "seen": [2, 2, -1, 3],
    }  # fmt: skip
    tensors = {name: torch.tensor(column).double() for name, column in columns.items()}
    values = summarize(tensors, ["low", "high"])
    assert values["fake_score_lag"] == 0.25
    assert (values["score_gap/low"], values["score_gap/high"]) == pytest.approx((math.sqrt(2), 0))
    assert (values["effective_samples/low"], values["effective_samples/high"]) == (0.5, 1)
    assert (values["weight_10/low"], values["weight_90/low"]) == pytest.approx((0.4, 3.6))
    assert (values["log_ratio_size/low"], values["log_ratio_size/high"]) == (1, 0)
    mean = (math.exp(-1) + math.exp(-3)) / 2
    assert values["ratio_mean/low"] == pytest.approx(mean)
    assert values["forward_kl/low"] == pytest.approx(2 - math.log(mean))
    assert values["reverse_kl/low"] == pytest.approx(2 + 2)
    # Image 1 alone differs, in one of its two samples: the means of the images are 0 and the half of this.
    excess = (math.log1p(math.exp(1)) - math.log1p(math.exp(-3))) / 2
    assert values["overfitting"] == pytest.approx(excess / 2)
    assert values["overfitting_error"] == pytest.approx(excess / math.sqrt(2) / math.sqrt(2))
    # A discriminator that sees all samples at one level has its values there.
    del tensors["weight"]
    one = summarize(tensors, ["low", "high"], 0.25)
    assert one["ratio_mean/0.25"] == pytest.approx((mean + 1) / 2) and one["log_ratio_size/0.25"] == 0
    assert one["score_gap/low"] == values["score_gap/low"] and one["overfitting"] == values["overfitting"]
    assert not {"ratio_mean/low", "log_ratio_size/high", "score_gap/0.25"} & one.keys()


@pytest.mark.slow
def test_the_cost_is_below_two_percent_of_a_training(tmp_path: Path) -> None:
    """By FLOPs, in the settings of CIFAR-10: two batches of samples and the teacher's, at every evaluation."""
    parts = build_distillation(tiny_config(tmp_path, "diagnosis.samples=32", "sampler.steps=18", "metrics=[]"))
    with FlopCounterMode(display=False) as of_iteration:
        list(take_updates(parts))
    diagnosis = Diagnosis(parts)
    with FlopCounterMode(display=False) as of_first:
        diagnosis(1)
    with FlopCounterMode(display=False) as of_others:
        diagnosis(1)
    cifar10 = compose("train", ["experiment=benchmark/cifar10_uncond", "teacher.path=a.pkl"])
    assert cifar10.diagnosis.samples == 2 * cifar10.training.batch_size
    iterations = of_iteration.get_total_flops() * cifar10.training.evaluate_every
    first, others = (counter.get_total_flops() / iterations for counter in (of_first, of_others))
    assert 5e-4 < others < 1.5e-3 and others < first < 4e-3  # docs/diagnosis.md has these numbers


def test_levels_have_names_of_two_digits() -> None:
    assert level_names([0.0123, 0.98765, 12.34, 161.0]) == ["0.012", "0.99", "12", "160"]
    assert level_names([1.001, 1.002, 1.003, 2.0]) == ["1", "2", "3", "4"]


def test_spread_of_known_samples() -> None:
    """Two conditions by turns: pairs at distance 2 around 0 and at distance 4 around 10."""
    samples = torch.tensor([-1.0, 8.0, 1.0, 12.0])[:, None, None, None]
    spread, diversity = spread_of(samples, conditions=2)
    assert (float(spread), float(diversity)) == pytest.approx((math.sqrt((2 + 8) / 2), 3))

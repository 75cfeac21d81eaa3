"""What the loop trains, by what, and in which order."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor

from onestep.assets import ASSETS
from onestep.build.distillation import build_distillation, distill
from onestep.data.dataset import PositionSampler
from onestep.denoiser import Condition
from onestep.distillation import loop, report
from onestep.distillation.loop import exit_step
from onestep.distillation.parts import Distillation
from onestep.engine.log import read_log
from onestep.models.generator import Generator
from onestep.models.loading import load_teacher
from onestep.samplers import HeunSampler
from onestep.seeding import seeded_inputs, seeded_rng
from tests.fixtures.runs import FEW_STEPS

TrainConfig = Callable[..., DictConfig]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Distillation]:
    """The parts of every distillation that the test starts."""
    kept: list[Distillation] = []

    def build_and_keep(*arguments: Any) -> Distillation:
        kept.append(build_distillation(*arguments))
        return kept[-1]

    monkeypatch.setattr(loop, "build_distillation", build_and_keep)
    return kept


@pytest.mark.parametrize("divergence", ["reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("discriminator", ["teacher_features", "shared_encoder"])
@pytest.mark.parametrize("objective", ["f_distill", "uni_instruct"])
def test_every_method_moves_the_student_and_not_the_teacher(
    objective: str,
    discriminator: str,
    divergence: str,
    train_config: TrainConfig,
    built: list[Distillation],
    tmp_path: Path,
) -> None:
    overrides = (f"objective={objective}", f"discriminator={discriminator}", f"divergence={divergence}")
    distill(train_config(tmp_path, *overrides, "generator.gan_weight=0.1", "training.total_images=32"))
    (parts,) = built
    judges = parts.method
    original = load_file(ASSETS / "digits" / "diffusion_pytorch_model.safetensors")
    for name, value in judges.teacher.state_dict().items():
        assert torch.equal(value, original[name]), name
    assert all(p.grad is None and not p.requires_grad for p in judges.teacher.parameters())

    # Each student starts as the teacher; with a shared encoder the decoder learns too.
    assert judges.fake_score is not None and judges.discriminator is not None
    for student in (parts.student.denoiser, judges.fake_score):
        moved = [name for name, value in student.named_parameters() if not torch.equal(value, original[name])]
        assert len(moved) > 0.9 * len(original)
    assert (judges.discriminator.logit.weight != 0).all()  # a fresh one is 0
    host = judges.teacher if discriminator == "teacher_features" else judges.fake_score
    assert judges.discriminator_host is host


@pytest.mark.parametrize("objective", ["f_distill", "uni_instruct"])
def test_reverse_kl_needs_no_discriminator(
    objective: str, train_config: TrainConfig, built: list[Distillation], tmp_path: Path
) -> None:
    overrides = (f"objective={objective}", "divergence=reverse_kl", "discriminator=none", "generator.gan_weight=0")
    distill(train_config(tmp_path, *overrides, "training.total_images=32"))
    assert built[0].method.discriminator is None and built[0].method.normalizer is None
    assert {"generator.safetensors", "fake_score.safetensors"} == {
        file.name
        for file in (tmp_path / "checkpoints" / "iteration_00000002").glob("*.safetensors")
        if "optimizer" not in file.name and "ema" not in file.name
    }
    (first, *_) = read_log(tmp_path / "log.jsonl")
    assert "discriminator_loss" not in first and "adversarial_loss" not in first
    assert first["generator_gradient"] > 0


def test_fake_score_steps_are_steps_of_the_fake_score(
    train_config: TrainConfig, built: list[Distillation], tmp_path: Path
) -> None:
    distill(train_config(tmp_path, "fake_score.steps=3", "training.total_images=32"))
    taken = {
        name: {int(state["step"]) for state in optimizer.optimizer.state.values()}
        for name, optimizer in built[0].optimizers.items()
    }
    assert taken == {"generator": {2}, "fake_score": {6}}


def test_the_regression_is_added_to_the_objective(
    dmd: tuple[str, ...], train_config: TrainConfig, built: list[Distillation], tmp_path: Path
) -> None:
    """The gradient with it, less that without, is the weighted mean squared error's, computed here from the seeds."""
    one_step = ("training.total_images=16", "evaluation.samples=16", "training.grad_clip=1e9")
    distill(train_config(tmp_path / "with", *dmd, *one_step, "generator.regression_weight=0.5"))
    without_pairs = ("objective=dmd", "generator.regression_weight=0", "pairs=none")
    distill(train_config(tmp_path / "without", *one_step, *without_pairs))
    with_it, without_it = built
    assert without_it.pairs is None

    # The generator starts as the teacher; of 24 pairs, iteration 0 reads 16.
    generator = Generator(load_teacher("digits", guidance=1.0).requires_grad_(True), with_it.settings.sigma_init)
    indices = next(iter(PositionSampler(24, 16, seed=0)))
    latents, condition = seeded_inputs(indices, (1, 8, 8), 10)
    x_teacher = HeunSampler(2, 0.002, 80.0)(load_teacher("digits", guidance=1.0), latents, condition)
    loss = (generator(latents, condition) - x_teacher).square().mean()
    expected = torch.autograd.grad(0.5 * loss, list(generator.parameters()))

    (line,) = (line for line in read_log(tmp_path / "with" / "log.jsonl") if "loss" in line)
    assert line["regression_loss"] == pytest.approx(loss.item(), rel=1e-4) and loss > 0.01
    differences = [
        torch.zeros_like(gradient) if ours.grad is None or theirs.grad is None else ours.grad - theirs.grad
        for ours, theirs, gradient in zip(
            with_it.generator.parameters(), without_it.generator.parameters(), expected, strict=True
        )
    ]
    difference, whole = (torch.cat([part.flatten() for part in parts]) for parts in (differences, expected))
    assert (difference - whole).norm() < 1e-4 * whole.norm()
    assert whole.norm() > 0.01


def test_the_pairs_are_drawn_once(
    dmd: tuple[str, ...], train_config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, drawn in (("first", True), ("second", False)):
        distill(train_config(tmp_path / run, *dmd, "training.total_images=16", "evaluation.samples=16"))
        assert ("0 of 3 chunks are in" in capsys.readouterr().out) is drawn


@pytest.mark.parametrize("objective, largest", [("f_distill", 0.0), ("uni_instruct", 1e-6)])
def test_a_fake_score_that_is_the_teacher_gives_no_gradient(
    objective: str, largest: float, train_config: TrainConfig, built: list[Distillation], tmp_path: Path
) -> None:
    """Exactly none for f-distill; Uni-Instruct's is a sum of terms that cancel up to rounding."""
    lines = []
    for lr in (0.0, 1e-3):
        overrides = (
            f"objective={objective}", "divergence=reverse_kl", "weighting=unit", "discriminator=none",
            "generator.gan_weight=0", "training.total_images=16", f"optimizer.fake_score.lr={lr}",
            "evaluation.samples=16",
        )  # fmt: skip
        distill(train_config(tmp_path / str(lr), *overrides))
        lines += read_log(tmp_path / str(lr) / "log.jsonl")
    equal, learnt = lines
    assert equal["score_gap"] == equal["loss"] == 0
    assert learnt["score_gap"] > 0.01
    assert equal["generator_gradient"] <= largest * learnt["generator_gradient"]
    if largest == 0:
        pairs = zip(built[0].generator.denoiser.parameters(), built[0].method.teacher.parameters(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_the_average_starts_as_the_generator_and_then_lags(finished_run: Path) -> None:
    for iteration, equal in (("iteration_00000001", True), ("iteration_00000006", False)):
        folder = finished_run / "checkpoints" / iteration
        average, network = (load_file(folder / f"{name}.safetensors") for name in ("generator_ema", "generator"))
        assert all(torch.equal(average[key], network[key]) for key in network) is equal


# Generators of several steps.


def test_every_step_is_trained_about_as_often() -> None:
    """Each of 4 steps is expected 1000 times of 4000, with a standard deviation of 27.4; four are allowed."""
    for seed in (0, 1):
        drawn = [exit_step(seed, iteration, steps=4) for iteration in range(4000)]
        assert np.abs(np.bincount(drawn, minlength=4) - 1000).max() <= 110
        repeats = sum(now == then for now, then in pairwise(drawn))
        assert repeats == pytest.approx(1000, abs=110)  # neighbouring iterations are independent


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """The noises of every call of ``Generator.simulate`` with a gradient: of each iteration."""
    kept: list[list[Tensor]] = []
    simulate = Generator.simulate

    def keep_and_simulate(generator: Generator, noises: list[Tensor], condition: Condition) -> Tensor:
        if torch.is_grad_enabled():
            kept.append(noises)
        return simulate(generator, noises, condition)

    monkeypatch.setattr(Generator, "simulate", keep_and_simulate)
    return kept


def test_a_run_of_several_steps(
    simulated: list[list[Tensor]], train_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[tuple[str, str]] = []
    monkeypatch.setattr(report, "save_side_by_side", lambda teacher, student, both, path: titles.append(both))
    summary = distill(train_config(tmp_path, *FEW_STEPS, "training.total_images=144", "evaluation.samples=16"))
    exit_steps = [len(noises) - 1 for noises in simulated]
    assert exit_steps == [exit_step(0, iteration, steps=3) for iteration in range(9)]
    assert set(exit_steps) == {0, 1, 2}
    assert summary["student"]["network_evaluations"] == 3
    assert titles == [("teacher, 3 evaluations", "student, 3 evaluations")]
    for folder in ("generator", "generator_raw"):
        assert Generator.from_pretrained(tmp_path / folder).later_sigmas == [0.5, 0.2]


def test_one_step_takes_one_draw_of_its_cycle_s_randomness(
    simulated: list[list[Tensor]], train_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn behind the latents is what it was before generators had several steps."""
    states: list[Tensor] = []
    update_fake_score = loop.update_fake_score

    def keep_state(*inputs: Any) -> dict[str, Tensor]:
        states.append(inputs[-1].generator.get_state())
        return update_fake_score(*inputs)

    monkeypatch.setattr(loop, "update_fake_score", keep_state)
    distill(train_config(tmp_path, "training.total_images=32", "evaluation.samples=16"))
    assert len(simulated) == len(states) == 2
    for iteration, ((latents,), state) in enumerate(zip(simulated, states, strict=True)):
        random = seeded_rng(0, 0, iteration)
        assert torch.equal(latents, torch.randn(16, 1, 8, 8, generator=random))
        assert torch.equal(state, random.get_state())

"""The loop: trained parameters, gradients, and the order of updates."""

import copy
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from onestep.assets import ASSETS
from onestep.build.distillation import build_distillation, distill
from onestep.data.dataset import PositionSampler
from onestep.denoiser import Condition
from onestep.distillation import report
from onestep.distillation.loop import exit_step
from onestep.distillation.method import Method
from onestep.engine.optimizer import GuardedOptimizer
from onestep.models.discriminator import PooledHead
from onestep.models.generator import Generator
from onestep.models.loading import load_teacher
from onestep.noise import LogUniformSigma
from onestep.objectives.losses import Losses
from onestep.samplers import HeunSampler
from onestep.seeding import seeded_inputs, seeded_rng
from tests.helpers.configs import FEW_STEPS, tiny_config
from tests.helpers.updates import take_updates


@pytest.mark.parametrize(
    "objective, discriminator, divergence",
    [
        ("f_distill", "teacher_features", "jensen_shannon"),
        ("f_distill", "shared_encoder", "reverse_kl"),
        ("uni_instruct", "teacher_features", "reverse_kl"),
        ("uni_instruct", "shared_encoder", "jensen_shannon"),
    ],
)
def test_every_method_moves_the_student_and_not_the_teacher(
    objective: str, discriminator: str, divergence: str, tmp_path: Path
) -> None:
    overrides = (f"objective={objective}", f"discriminator={discriminator}", f"divergence={divergence}")
    parts = build_distillation(tiny_config(tmp_path, *overrides, "generator.gan_weight=0.1"))
    list(take_updates(parts, iterations=2))
    method = parts.method
    original = load_file(ASSETS / "digits" / "diffusion_pytorch_model.safetensors")
    for name, value in method.teacher.state_dict().items():
        assert torch.equal(value, original[name]), name
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())

    # Students are initialised as the teacher. With a shared encoder the fake score's decoder is trained too.
    assert method.fake_score is not None and method.discriminator is not None
    for student in (parts.student.denoiser, method.fake_score):
        moved = [name for name, value in student.named_parameters() if not torch.equal(value, original[name])]
        assert len(moved) > 0.9 * len(original)
    assert all((p != 0).any() for p in method.discriminator.parameters())  # the last layer's are initialised to 0
    assert method.host is (method.teacher if discriminator == "teacher_features" else method.fake_score)


def test_a_discriminator_without_weights(tmp_path: Path) -> None:
    overrides = ("objective=sida", "discriminator=channel_mean", "generator.gan_weight=0.1")
    parts = build_distillation(tiny_config(tmp_path, *overrides))
    assert parts.trained_networks.keys() == {"generator", "fake_score", "normalizer"}
    assert parts.optimizers["critics"].optimizers.keys() == {"fake_score"}
    critics, generator = take_updates(parts)
    assert critics["discriminator_loss"].shape == generator["adversarial_loss"].shape
    assert critics["discriminator_loss"].isfinite().all()


@pytest.mark.parametrize(("normalizer", "times"), [("published", 2), ("quantile_bins", 4)])
def test_micro_batches_pass_the_normalizer(
    normalizer: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each for the published one, which changes with each pass; the other's full batch needs its mean first.

    The step's ratios and levels then are in the normaliser's means.
    """
    parts = build_distillation(tiny_config(tmp_path, f"normalizer={normalizer}", "training.accumulation=2"))
    passes: list[tuple[Tensor, Tensor, Tensor]] = []
    scales: list[Tensor | None] = []
    generator_losses = Method.generator_losses

    def record(method: Method, *inputs: Any) -> Losses:
        scales.append(inputs[3])
        return generator_losses(method, *inputs)

    monkeypatch.setattr(Method, "generator_losses", record)
    assert parts.method.normalizer is not None and isinstance(parts.method.discriminator, PooledHead)
    torch.nn.init.normal_(parts.method.discriminator.heads[0].logit.weight)  # type: ignore[arg-type, union-attr]  # so that the ratios differ
    other = copy.deepcopy(parts.method.normalizer)
    parts.method.normalizer.register_forward_hook(lambda _, inputs, output: passes.append((*inputs, output)))
    list(take_updates(parts))
    assert len(passes) == times
    logits, levels, ratios = (torch.cat(both).detach() for both in zip(*passes[-2:], strict=True))
    for half in (slice(0, 8), slice(8, 16)):
        other(logits[half], levels[half])
    other.update(logits, levels)
    for ours, theirs in zip(parts.method.normalizer.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert logits.std() > 0.01 and len(levels.unique()) == 16
    expected = parts.method.objective.weight_scale(ratios) if times == 4 else None
    assert scales == [expected] * 2


@pytest.mark.parametrize("objective", ["f_distill", "uni_instruct"])
def test_reverse_kl_needs_no_discriminator(objective: str, tmp_path: Path) -> None:
    overrides = (f"objective={objective}", "divergence=reverse_kl", "discriminator=none", "generator.gan_weight=0")
    parts = build_distillation(tiny_config(tmp_path, *overrides))
    assert parts.method.discriminator is None and parts.method.normalizer is None
    assert parts.trained_networks.keys() == {"generator", "fake_score"}  # the networks of a checkpoint
    critics, generator = take_updates(parts)
    assert "discriminator_loss" not in critics and "adversarial_loss" not in generator
    assert generator["generator_gradient"] > 0


def test_fake_score_steps_are_steps_of_the_critics(tmp_path: Path) -> None:
    parts = build_distillation(tiny_config(tmp_path, "fake_score.steps=3"))
    assert len(list(take_updates(parts, iterations=2))) == 2 * (3 + 1)
    taken = {
        name: {int(state["step"]) for state in optimizer.state.values()}
        for guard in parts.optimizers.values()
        for name, optimizer in guard.optimizers.items()
    }
    assert taken == {"generator": {2}, "fake_score": {6}, "discriminator": {6}}


def test_the_regression_is_added_to_the_objective(
    dmd: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient with the regression minus that without is the weighted mean squared error's, from the seeds."""
    without_pairs = ("objective=dmd", "generator.regression_weight=0", "pairs=none")
    with_it, without_it = (
        build_distillation(tiny_config(tmp_path, *overrides, "clip.generator=null", "clip.critics=null"))
        for overrides in ((*dmd, "generator.regression_weight=0.5"), without_pairs)
    )
    assert without_it.pairs is None
    monkeypatch.setattr(GuardedOptimizer, "_zero_grad", lambda _: None)  # the gradients of the only step are kept
    *_, update = take_updates(with_it)
    list(take_updates(without_it))

    # The generator is initialised as the teacher; iteration 0 reads 16 of 24 pairs.
    generator = Generator(load_teacher("digits", guidance=1.0).requires_grad_(True), with_it.generator.sigma_init)
    indices = next(iter(PositionSampler(24, 16, seed=0)))
    latents, condition = seeded_inputs(indices, (1, 8, 8), 10)
    x_teacher = HeunSampler(2, 0.002, 80.0)(load_teacher("digits", guidance=1.0), latents, condition)
    loss = (generator(latents, condition) - x_teacher).square().mean()
    expected = torch.autograd.grad(0.5 * loss, list(generator.parameters()))

    assert update["regression_loss"].mean().item() == pytest.approx(loss.item(), rel=1e-4) and loss > 0.01
    differences = [
        torch.zeros_like(gradient) if ours.grad is None or theirs.grad is None else ours.grad - theirs.grad
        for ours, theirs, gradient in zip(
            with_it.student.parameters(), without_it.student.parameters(), expected, strict=True
        )
    ]
    difference, full = (torch.cat([part.flatten() for part in parts]) for parts in (differences, expected))
    assert (difference - full).norm() < 1e-4 * full.norm()
    assert full.norm() > 0.01


def test_the_pairs_are_drawn_once(dmd: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for drawn in (True, False):
        build_distillation(tiny_config(tmp_path, *dmd))
        assert ("0 of 3 chunks are in" in capsys.readouterr().out) is drawn


@pytest.mark.parametrize("objective, largest", [("f_distill", 0.0), ("uni_instruct", 1e-6)])
def test_a_fake_score_that_is_the_teacher_gives_no_gradient(objective: str, largest: float, tmp_path: Path) -> None:
    """Exactly 0 for f-distill. Uni-Instruct's gradient is a sum of terms that cancel up to rounding."""
    overrides = (f"objective={objective}", "divergence=reverse_kl", "weighting=unit", "discriminator=none",
                 "generator.gan_weight=0")  # fmt: skip
    fixed, trained = (
        build_distillation(tiny_config(tmp_path, *overrides, f"optimizer.fake_score.lr={lr}")) for lr in (0.0, 1e-3)
    )
    (_, equal), (_, learnt) = take_updates(fixed), take_updates(trained)
    assert (equal["score_gap"] == 0).all() and (equal["loss"] == 0).all()
    assert learnt["score_gap"].mean() > 0.01
    assert equal["generator_gradient"] <= largest * learnt["generator_gradient"]
    if largest == 0:
        pairs = zip(fixed.student.denoiser.parameters(), fixed.method.teacher.parameters(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_the_average_starts_as_the_generator_and_then_lags(finished_run: Path) -> None:
    for iteration, equal in (("iteration_00000001", True), ("iteration_00000006", False)):
        folder = finished_run / "checkpoints" / iteration
        average, network = (load_file(folder / f"{name}.safetensors") for name in ("generator_ema", "generator"))
        assert all(torch.equal(average[key], network[key]) for key in network) is equal


# Generators of several steps.


def test_every_step_is_trained_about_as_often() -> None:
    """Each of 4 steps is expected 1000 times in 4000, within 4 standard deviations of 27.4."""
    for seed in (0, 1):
        drawn = [exit_step(seed, iteration, steps=4) for iteration in range(4000)]
        assert np.abs(np.bincount(drawn, minlength=4) - 1000).max() <= 110
        repeats = sum(now == then for now, then in pairwise(drawn))
        assert repeats == pytest.approx(1000, abs=110)  # neighbouring iterations are independent


class RecordingStudent:
    """A student that records the noises of every call of ``simulate`` with a gradient."""

    def __init__(self, student: Generator) -> None:
        self.student, self.kept = student, list[Sequence[Tensor]]()
        self.noise_shape, self.network_evaluations = student.noise_shape, student.network_evaluations

    def simulate(self, noises: Sequence[Tensor], condition: Condition) -> Tensor:
        if torch.is_grad_enabled():
            self.kept.append(noises)
        return self.student.simulate(noises, condition)


class RecordingSigma(LogUniformSigma):
    """A distribution that records the rng's state before every sample."""

    def __init__(self) -> None:
        super().__init__(0.1, 10.0)
        self.states: list[Tensor] = []

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        self.states.append(rng.get_state())
        return super().sample(count, rng)


def test_the_trained_steps_are_those_that_are_drawn(tmp_path: Path) -> None:
    parts = build_distillation(tiny_config(tmp_path, *FEW_STEPS))
    student = parts.student = RecordingStudent(parts.student)
    list(take_updates(parts, iterations=9))
    exit_steps = [len(noises) - 1 for noises in student.kept]
    assert exit_steps == [exit_step(0, iteration, steps=3) for iteration in range(9)]
    assert set(exit_steps) == {0, 1, 2}


def test_what_a_run_of_several_steps_says_and_saves(
    few_step_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = json.loads((few_step_run / "summary.json").read_text())
    assert summary["student"]["network_evaluations"] == 3
    for folder in ("generator", "generator_raw"):
        assert Generator.from_pretrained(few_step_run / folder).later_sigmas == [0.5, 0.2]
    titles: list[tuple[str, str]] = []
    monkeypatch.setattr(report, "save_side_by_side", lambda teacher, student, both, path: titles.append(both))
    distill(tiny_config(tmp_path, *FEW_STEPS, "training.total_images=16", "evaluation.samples=16"))
    assert titles == [("teacher, 3 evaluations", "student, 3 evaluations")]


def test_one_step_takes_one_draw_of_its_iteration_s_randomness(tmp_path: Path) -> None:
    """The random numbers after the latents do not depend on the number of steps."""
    parts = build_distillation(tiny_config(tmp_path, "seed=7"))
    student = parts.student = RecordingStudent(parts.student)
    levels = parts.fake_sigma = RecordingSigma()  # the first random numbers after the latents
    list(take_updates(parts, iterations=2))
    assert len(student.kept) == len(levels.states) == 2
    for iteration, ((latents,), state) in enumerate(zip(student.kept, levels.states, strict=True)):
        rng = seeded_rng(7, 0, iteration)
        assert torch.equal(latents, torch.randn(16, 1, 8, 8, generator=rng))
        assert torch.equal(state, rng.get_state())

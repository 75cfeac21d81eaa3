"""The teacher's guidance as a term of its own, against guided distribution matching and closed forms of Gaussians."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onestep.build.distillation import build_distillation
from onestep.denoiser import Condition
from onestep.distillation.loop import exit_step
from onestep.distillation.method import Method
from onestep.models.base import DenoiserNetwork
from onestep.models.guidance import PLAIN, GuidanceRule
from onestep.noise import KarrasSigma, LogUniformSigma, Noised
from onestep.objectives.divergences import ReverseKL
from onestep.objectives.f_distill import FDistill
from onestep.objectives.guidance import GuidanceAugmentation
from onestep.objectives.terms import TermInputs
from onestep.objectives.weighting import PowerWeighting, UnitWeighting, Weighting
from tests.helpers.configs import FEW_STEPS, refused, tiny_config
from tests.helpers.edm_models import tiny_denoiser
from tests.helpers.updates import as_process, take_updates

GUIDANCE, MEAN, STD = 3.0, 2.0, 0.5
CONDITION = {"labels": torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]}
SIGMA = torch.tensor([0.2, 0.5, 1.0, 3.0], dtype=torch.float64)


class Gaussian(DenoiserNetwork):
    """The exact denoiser of N(mean, STD^2), and of N(0, STD^2) without a class."""

    image_shape, sigma_min, sigma_max, label_dim = (1, 8, 8), 0.002, 80.0, 3
    supports_guidance = True

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.mean = mean

    def denoise(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        mean = self.mean * condition["labels"].sum(1)[:, None, None, None]
        return mean + (STD**2 / (STD**2 + sigma**2))[:, None, None, None] * (x_sigma - mean)


def drawn(seed: int) -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matching(
    teacher: Any, fake_score: Any, x: Tensor, noised: Noised, weighting: Weighting, guided: bool = True
) -> Tensor:
    """The gradient of distribution matching by the samples ``x``."""
    objective = FDistill(ReverseKL(), weighting, normalize_weight=False)
    method = Method(teacher, objective, fake_score, guided=guided)
    return torch.autograd.grad(method.generator_losses(x, CONDITION, noised).terms["objective"].losses.sum(), x)[0]


def augmentation(teacher: Any, x: Tensor, noised: Noised, weighting: Weighting) -> Tensor:
    """The gradient of the term by the samples ``x``."""
    term = GuidanceAugmentation(1.0, weighting, sigma=None, below_step=True)
    inputs = TermInputs(None, x, None, {}, None, teacher, CONDITION, noised)
    return torch.autograd.grad(term.losses(inputs).sum(), x)[0]


@pytest.mark.parametrize("rule", [PLAIN, GuidanceRule(rescale=0.7, interval=(0.3, 2.0))], ids=["plain", "with a rule"])
def test_both_terms_add_up_to_guided_matching(rule: GuidanceRule) -> None:
    teacher, fake_score = (tiny_denoiser(seed, label_dropout=0.1).double().requires_grad_(False) for seed in (1, 2))
    teacher.set_guidance(GUIDANCE, rule=rule)
    x, noised = drawn(3).requires_grad_(), Noised(SIGMA, drawn(4))
    weighting = PowerWeighting(2.0)
    whole = matching(teacher, fake_score, x, noised, weighting)
    alone = matching(teacher, fake_score, x, noised, weighting, guided=False)
    added = augmentation(teacher, x, noised, weighting)
    assert (teacher.guidance, teacher.guidance_rule) == (GUIDANCE, rule)  # as before
    assert (whole - alone).abs().max() > 0.01
    torch.testing.assert_close(alone + added, whole, rtol=1e-12, atol=1e-12)


def test_gradients_of_gaussians_at_different_levels() -> None:
    """Scores of Gaussians of one variance differ by a constant: the gradient by the mean m of the generator is
    ``-(MEAN - m) / (STD^2 + sigma^2) - (w - 1) MEAN / (STD^2 + sigma_of_guidance^2)``, for every sample and noise.
    """
    teacher, mean, of_guidance = Gaussian(MEAN).set_guidance(GUIDANCE), 3.5, SIGMA.flip(0)
    x = (mean + STD * drawn(0)).requires_grad_()
    alone = matching(teacher, Gaussian(mean), x, Noised(SIGMA, drawn(1)), UnitWeighting(), guided=False)
    added = augmentation(teacher, x, Noised(of_guidance, drawn(2)), UnitWeighting())
    expected = -(MEAN - mean) / (STD**2 + SIGMA**2) - (GUIDANCE - 1) * MEAN / (STD**2 + of_guidance**2)
    torch.testing.assert_close(alone + added, expected[:, None, None, None].expand(4, 1, 8, 8), rtol=1e-11, atol=0)


def noise_of_updates(
    output: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, iterations: int = 1
) -> tuple[Any, list[Noised]]:
    """The parts of a training of four samples, and the levels and noise of each call of the term."""
    config = tiny_config(
        output, "teacher.guidance=2", "terms=[guidance_augmentation]", "training.batch_size=4", "metrics=[]", *overrides
    )
    parts, found, losses = build_distillation(config), list[Noised](), GuidanceAugmentation.losses

    def record(term: GuidanceAugmentation, inputs: TermInputs) -> Tensor:
        assert inputs.noised is not None and inputs.teacher.guidance == 2
        found.append(inputs.noised)
        return losses(term, inputs)

    monkeypatch.setattr(GuidanceAugmentation, "losses", record)
    for diagnostics in take_updates(parts, iterations):
        if "loss" in diagnostics:
            assert (diagnostics["guidance_augmentation_loss"] > 0).all()
    monkeypatch.setattr(GuidanceAugmentation, "losses", losses)
    return parts, found


def test_micro_batches_and_processes_have_the_numbers_of_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, (whole,) = noise_of_updates(tmp_path, monkeypatch)
    assert parts.method.teacher.guidance == 2 and not parts.method.guided
    _, halves = noise_of_updates(tmp_path, monkeypatch, "training.accumulation=2")
    assert torch.equal(torch.cat([half.sigma for half in halves]), whole.sigma)
    assert torch.equal(torch.cat([half.noise for half in halves]), whole.noise)
    with monkeypatch.context() as patch:
        as_process(patch, rank=1, processes=2)
        _, (second,) = noise_of_updates(tmp_path, monkeypatch)
    assert torch.equal(second.sigma, whole.sigma[2:]) and torch.equal(second.noise, whole.noise[2:])


def test_levels_are_below_the_input_of_the_trained_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps from sigma_init, 0.5 and 0.2. The iterations train several; the objective's levels reach 5."""
    parts, calls = noise_of_updates(tmp_path, monkeypatch, *FEW_STEPS, "sigma.sigma_min=0.02", iterations=6)
    inputs = [parts.student.sigma_init, *parts.student.later_sigmas]
    term = parts.terms["guidance_augmentation"]
    u = torch.linspace(0, 1, 5, dtype=torch.float64)
    for step, level in enumerate(inputs):
        law = term.levels_of_step(parts.sigma, 0.0, parts.student, step)
        expected = parts.sigma.quantile(u * parts.sigma.cdf(torch.tensor(level, dtype=torch.float64)))
        torch.testing.assert_close(law.quantile(u), expected)
        assert law.quantile(u)[-1] <= min(level, 5.0) + 1e-6
    steps = [exit_step(parts.run.seed, iteration, 3) for iteration in range(6)]
    assert {0, 1} <= set(steps)
    for step, call in zip(steps, calls, strict=True):
        assert call.sigma.max() <= inputs[step]


def test_a_law_of_its_own() -> None:
    own = LogUniformSigma(0.1, 1.0)
    term = GuidanceAugmentation(1.0, UnitWeighting(), sigma=own, below_step=False)
    assert term.levels_of_step(KarrasSigma(0.02, 80.0), 0.5, None, 0) is own


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), r"terms.guidance_augmentation: teacher.guidance=1.0: this EDMDenoiser makes no unconditional prediction"),
        (("teacher.guidance=2", "generator.later_sigmas=[0.01]"), "no noise level is below 0.01: "),
    ],
)
def test_what_is_refused(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    said = refused(tiny_config(tmp_path / "run", "terms=[guidance_augmentation]", "metrics=[]", *overrides))
    assert re.search(message, said)

"""What the judges compute, and where they leave a graph."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from onestep.distillation.judges import Judges, frozen
from onestep.models.discriminator import Discriminator
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.noise import LogUniformSigma, add_noise
from onestep.objectives.base import Predictions
from onestep.objectives.density_ratio import RatioNormalizer

Home = Literal["teacher", "fake_score"]
homes = pytest.mark.parametrize("home", ["teacher", "fake_score"])


@dataclass
class StubObjective:
    """An objective that says only what it needs."""

    differentiates_scores: bool
    needs_fake_score: bool = True
    needs_ratio: bool = True

    def __call__(self, predictions: Predictions) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError


class World:
    """Judges with random weights, and a noised batch."""

    def __init__(self, tiny_denoiser: Callable[..., EDMDenoiser], home: Home | None) -> None:
        torch.manual_seed(0)
        discriminator = None
        if home is not None:
            discriminator = Discriminator(feature_channels=32, features_from=home, hidden=8)
            nn.init.normal_(discriminator.logit.weight)
        normalizer = RatioNormalizer(LogUniformSigma(0.1, 10.0), bins=1, decay=0.9) if home is not None else None
        teacher = tiny_denoiser(seed=1).requires_grad_(False)
        self.judges = Judges(teacher, tiny_denoiser(seed=2), discriminator, normalizer)
        random = torch.Generator().manual_seed(3)
        self.x_generated = torch.randn(4, 1, 8, 8, generator=random).requires_grad_()
        self.noise = torch.randn(4, 1, 8, 8, generator=random)
        self.sigma, self.condition = torch.tensor([0.2, 0.5, 1.0, 3.0]), {"labels": torch.eye(3)[[0, 1, 2, 0]]}
        self.x_sigma = add_noise(self.x_generated, self.noise, self.sigma).detach()

    def evaluate(self, differentiates_scores: bool, adversarial: bool) -> tuple[Predictions, Tensor | None]:
        return self.judges.evaluate(
            StubObjective(differentiates_scores),
            self.x_generated,
            self.noise,
            self.sigma,
            self.condition,
            adversarial=adversarial,
        )

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        judges = self.judges
        assert judges.fake_score is not None and judges.discriminator is not None
        networks: dict[str, nn.Module] = {
            "teacher": judges.teacher,
            "fake": judges.fake_score,
            "discriminator": judges.discriminator,
        }
        return {name: list(network.parameters()) for name, network in networks.items()}


@pytest.fixture
def world(tiny_denoiser: Callable[..., EDMDenoiser], home: Home | None) -> World:
    return World(tiny_denoiser, home)


@homes
@torch.no_grad()
def test_values_are_those_of_direct_calls(world: World, home: Home) -> None:
    evaluation, logit = world.evaluate(differentiates_scores=False, adversarial=True)
    judges, inputs = world.judges, (world.x_sigma, world.sigma, world.condition)
    assert judges.fake_score is not None and judges.discriminator is not None
    assert evaluation.x0_fake is not None and logit is not None
    assert torch.equal(evaluation.x_sigma, world.x_sigma)
    assert torch.equal(evaluation.x0_teacher, judges.teacher(*inputs))
    assert torch.equal(evaluation.x0_fake, judges.fake_score(*inputs))
    host = {"teacher": judges.teacher, "fake_score": judges.fake_score}[home]
    assert judges.discriminator_host is host
    assert torch.equal(logit, judges.discriminator(host(*inputs, outputs="features")))
    assert logit.std() > 1e-3


@homes
@torch.no_grad()
def test_log_ratio_is_normalized_by_the_batches_before(world: World) -> None:
    first, logit = world.evaluate(differentiates_scores=False, adversarial=False)
    assert logit is not None and world.judges.normalizer is not None
    world.judges.normalizer.update(logit, world.sigma)
    second, _ = world.evaluate(differentiates_scores=False, adversarial=False)
    alone = world.judges.log_ratio(world.x_generated, world.noise, world.sigma, world.condition)
    assert first.log_ratio is not None and second.log_ratio is not None
    assert torch.equal(first.log_ratio, logit) and torch.equal(alone, second.log_ratio)
    torch.testing.assert_close(second.log_ratio, logit - logit.exp().mean().log())


@homes
@pytest.mark.parametrize("differentiates_scores", [False, True])
@pytest.mark.parametrize("adversarial", [False, True])
def test_graphs_are_where_they_are_asked_for(world: World, differentiates_scores: bool, adversarial: bool) -> None:
    evaluation, logit = world.evaluate(differentiates_scores, adversarial)
    assert evaluation.x0_fake is not None and evaluation.log_ratio is not None and logit is not None
    assert evaluation.x_sigma.requires_grad
    assert evaluation.x0_teacher.requires_grad == differentiates_scores
    assert evaluation.x0_fake.requires_grad == differentiates_scores
    assert logit.requires_grad == evaluation.log_ratio.requires_grad == (differentiates_scores or adversarial)


@homes
@pytest.mark.parametrize("name", ["x0_teacher", "x0_fake", "logit"])
def test_gradients_by_the_samples_are_those_of_direct_calls(world: World, home: Home, name: str) -> None:
    evaluation, logit = world.evaluate(differentiates_scores=True, adversarial=True)
    judges, x_sigma = world.judges, world.x_sigma.clone().requires_grad_()
    assert judges.fake_score is not None and judges.discriminator is not None and judges.discriminator_host is not None
    inputs = (x_sigma, world.sigma, world.condition)
    if name == "x0_teacher":
        result, direct = evaluation.x0_teacher, judges.teacher(*inputs)
    elif name == "x0_fake":
        assert evaluation.x0_fake is not None
        result, direct = evaluation.x0_fake, judges.fake_score(*inputs)
    else:
        assert logit is not None
        result, direct = logit, judges.discriminator(judges.discriminator_host(*inputs, outputs="features"))
    (gradient,) = torch.autograd.grad(result.square().sum(), world.x_generated)
    (expected,) = torch.autograd.grad(direct.square().sum(), x_sigma)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())


@homes
def test_no_judge_gets_gradients_and_what_was_trainable_stays_so(world: World) -> None:
    evaluation, logit = world.evaluate(differentiates_scores=True, adversarial=True)
    assert evaluation.x0_fake is not None and evaluation.log_ratio is not None and logit is not None
    parameters = world.parameters()
    assert not any(p.requires_grad for p in parameters["teacher"])
    assert all(p.requires_grad for name in ("fake", "discriminator") for p in parameters[name])
    outputs = (evaluation.x0_teacher, evaluation.x0_fake, evaluation.log_ratio, logit)
    torch.stack([output.sum() for output in outputs]).sum().backward()
    assert world.x_generated.grad is not None and world.x_generated.grad.abs().max() > 1e-3
    assert all(p.grad is None for group in parameters.values() for p in group)


@pytest.mark.parametrize("home", [None])
def test_without_discriminator_and_fake_score(world: World) -> None:
    world.judges.fake_score = None
    evaluation, logit = world.evaluate(differentiates_scores=False, adversarial=False)
    assert evaluation.x0_fake is None and evaluation.log_ratio is None and logit is None
    assert torch.equal(evaluation.x0_teacher, world.judges.teacher(world.x_sigma, world.sigma, world.condition))


def test_frozen_restores_after_an_error() -> None:
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    with pytest.raises(KeyError), frozen(network, None):
        assert not network.weight.requires_grad
        raise KeyError
    assert network.weight.requires_grad and not network.bias.requires_grad

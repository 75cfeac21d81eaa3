"""The losses of a method: values, graphs and parameters with gradients."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from onestep.data.diff_augment import DifferentiableAugmentation
from onestep.denoiser import micro_batches
from onestep.distillation.method import Method
from onestep.distillation.view import View
from onestep.metrics.classifier import load_classifier
from onestep.models.discriminator import ChannelMean, Discriminator, PooledHead, StridedHeads
from onestep.models.freezing import frozen
from onestep.models.pretrained_features import PretrainedFeatures
from onestep.models.sample_networks import NOISED_SAMPLES, ConvolutionalNetwork
from onestep.noise import LogUniformSigma, Noised, add_noise
from onestep.objectives.adversarial import Adversarial, discriminator_loss
from onestep.objectives.base import Objective, Predictions
from onestep.objectives.density_ratio import LinearBins, QuantileBins
from onestep.objectives.divergences import ForwardKL, ReverseKL
from onestep.objectives.f_distill import FDistill
from onestep.objectives.gradient_penalty import ExactPenalty, FiniteDifferencePenalty, GradientPenalty
from onestep.objectives.losses import Losses, Term
from onestep.objectives.uni_instruct import UniInstruct
from onestep.objectives.weighting import UnitWeighting
from tests.helpers.edm_models import tiny_denoiser

Home = Literal["teacher", "fake_score", "samples"]
homes = pytest.mark.parametrize("home", ["teacher", "fake_score", "samples"])


class StubObjective(Objective):
    """Records its predictions; its losses are 2 x^2 per sample."""

    needs_ratio = True

    def __init__(self, differentiates_scores: bool) -> None:
        self.differentiates_scores = differentiates_scores
        self.kept: list[Predictions] = []

    def __call__(self, predictions: Predictions) -> tuple[Tensor, dict[str, Tensor]]:
        self.kept.append(predictions)
        return 2 * predictions.x_generated.square().flatten(1).sum(1), {"number": torch.tensor(7.0)}


class World:
    """A method with random weights, and a noised batch."""

    def __init__(self, home: Home | None) -> None:
        torch.manual_seed(0)
        discriminator: PooledHead | ConvolutionalNetwork | None = None
        self.logit: Any = None  # its last layer
        if home == "samples":
            discriminator = ConvolutionalNetwork(
                [(1, 8, 8)], 3, features_from=home, channels=8, embedding=8, layers=None, pooled=False
            )
            self.logit = discriminator.logit
        elif home is not None:
            discriminator = PooledHead([(16, 8, 8), (32, 4, 4)], 3, home, hidden=8, levels=[-1], projection=False)
            self.logit = discriminator.heads[0].logit
        if discriminator is not None:
            nn.init.normal_(self.logit.weight)
        self.normalizer = QuantileBins(LogUniformSigma(0.1, 10.0), bins=1, decay=0.9) if home is not None else None
        self.teacher, self.fake_score = tiny_denoiser(seed=1).requires_grad_(False), tiny_denoiser(seed=2)
        self.host: Any = {"teacher": self.teacher, "samples": NOISED_SAMPLES}.get(str(home), self.fake_score)
        self.discriminator: Any = discriminator
        rng = torch.Generator().manual_seed(3)
        self.x_generated = torch.randn(4, 1, 8, 8, generator=rng).requires_grad_()
        self.noise, self.x_real, self.noise_real = torch.randn(3, 4, 1, 8, 8, generator=rng)
        self.sigma = torch.tensor([0.2, 0.5, 1.0, 3.0])
        self.condition = {"labels": torch.eye(3)[[0, 1, 2, 0]]}
        self.x_sigma = add_noise(self.x_generated, self.noise, self.sigma).detach()
        self.x_real_sigma = add_noise(self.x_real, self.noise_real, self.sigma)

    def method(self, objective: Objective | None = None, **options: Any) -> Method:
        networks = {
            "fake_score": self.fake_score, "discriminator": self.discriminator, "normalizer": self.normalizer,
        }  # fmt: skip
        return Method(self.teacher, objective or StubObjective(False), **(networks | options))

    def predict(self, differentiates_scores: bool, gan_weight: float, **options: Any) -> tuple[Any, Losses]:
        """The objective's predictions, and the generator's losses."""
        objective = StubObjective(differentiates_scores)
        method = self.method(objective, gan_weight=gan_weight, **options)
        losses = method.generator_losses(self.x_generated, self.condition, Noised(self.sigma, self.noise))
        (predictions,) = objective.kept
        return predictions, losses

    def critic_losses(self, **options: Any) -> Losses:
        """The critics' losses with a graph to their parameters."""
        noised = Noised(self.sigma, self.noise), Noised(self.sigma, self.noise_real)
        inputs = (self.x_generated, self.x_real, self.condition, *noised)
        return self.method(**options).critic_losses(*inputs)

    def logits(self, x_sigma: Tensor) -> Tensor:
        features = self.host(x_sigma, self.sigma, self.condition, outputs="features")
        return self.discriminator(features, self.sigma, self.condition)[:, 0]

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        networks = {"teacher": self.teacher, "fake": self.fake_score, "discriminator": self.discriminator}
        return {name: list(network.parameters()) for name, network in networks.items()}


@pytest.fixture
def world(home: Home | None) -> World:
    return World(home)


# The generator's losses.


@homes
@torch.no_grad()
def test_values_are_those_of_direct_calls(world: World, home: Home) -> None:
    predictions, losses = world.predict(differentiates_scores=False, gan_weight=0.25)
    inputs = (world.x_sigma, world.sigma, world.condition)
    assert predictions.x0_fake is not None and losses.logit is not None
    assert torch.equal(predictions.x_sigma, world.x_sigma)
    assert torch.equal(predictions.x0_teacher, world.teacher(*inputs))
    assert torch.equal(predictions.x0_fake, world.fake_score(*inputs))
    assert world.method().host is world.host
    logit = world.logits(world.x_sigma)
    assert torch.equal(losses.logit, logit)
    assert logit.std() > 1e-3

    objective, adversarial = 2 * world.x_generated.square().sum((1, 2, 3)), nn.functional.softplus(-logit)
    assert {name: term.weight for name, term in losses.terms.items()} == {"objective": 1.0, "adversarial": 0.25}
    torch.testing.assert_close(losses.terms["objective"].losses, objective)
    torch.testing.assert_close(losses.terms["adversarial"].losses, adversarial)
    torch.testing.assert_close(losses.total, objective.mean() + 0.25 * adversarial.mean())
    assert losses.diagnostics.keys() == {"number", "loss", "adversarial_loss"} and losses.diagnostics["number"] == 7


@homes
@torch.no_grad()
def test_log_ratio_is_normalized_by_the_batches_before(world: World) -> None:
    first, losses = world.predict(differentiates_scores=False, gan_weight=0.0)
    logit = losses.logit
    assert logit is not None and world.normalizer is not None
    assert losses.terms.keys() == {"objective"}
    world.normalizer.update(logit, world.sigma)
    second, _ = world.predict(differentiates_scores=False, gan_weight=0.0)
    alone = world.method().log_ratio(world.x_generated, world.condition, Noised(world.sigma, world.noise))
    assert first.log_ratio is not None and second.log_ratio is not None
    assert torch.equal(first.log_ratio, logit) and torch.equal(alone, second.log_ratio)
    torch.testing.assert_close(second.log_ratio, logit - logit.exp().mean().log())
    raw, _ = world.predict(differentiates_scores=False, gan_weight=0.0, normalizer=None)
    assert torch.equal(raw.log_ratio, logit)


@homes
@pytest.mark.parametrize("differentiates_scores", [False, True])
@pytest.mark.parametrize("gan_weight", [0.0, 0.25])
def test_graphs_are_where_they_are_asked_for(world: World, differentiates_scores: bool, gan_weight: float) -> None:
    predictions, losses = world.predict(differentiates_scores, gan_weight)
    assert predictions.x_sigma.requires_grad
    assert predictions.x0_teacher.requires_grad == differentiates_scores
    assert predictions.x0_fake.requires_grad == differentiates_scores
    assert predictions.log_ratio.requires_grad == (differentiates_scores or gan_weight > 0)
    assert losses.logit is not None and not losses.logit.requires_grad
    if gan_weight > 0:
        assert losses.terms["adversarial"].losses.requires_grad


@homes
@pytest.mark.parametrize("name", ["x0_teacher", "x0_fake", "log_ratio", "adversarial"])
def test_gradients_by_the_samples_are_those_of_direct_calls(world: World, name: str) -> None:
    predictions, losses = world.predict(differentiates_scores=True, gan_weight=0.25)
    x_sigma = world.x_sigma.clone().requires_grad_()
    inputs = (x_sigma, world.sigma, world.condition)
    if name in ("x0_teacher", "x0_fake"):
        direct = (world.teacher if name == "x0_teacher" else world.fake_score)(*inputs)
    else:
        direct = world.logits(x_sigma)
    if name == "adversarial":
        result, direct = losses.terms[name].losses, nn.functional.softplus(-direct)
    else:
        result = getattr(predictions, name)
    (gradient,) = torch.autograd.grad(result.square().sum(), world.x_generated)
    (expected,) = torch.autograd.grad(direct.square().sum(), x_sigma)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())


@homes
def test_no_critic_gets_gradients_and_what_was_trainable_stays_so(world: World) -> None:
    predictions, losses = world.predict(differentiates_scores=True, gan_weight=0.25)
    parameters = world.parameters()
    assert not any(p.requires_grad for p in parameters["teacher"])
    assert all(p.requires_grad for name in ("fake", "discriminator") for p in parameters[name])
    outputs = (predictions.x0_teacher, predictions.x0_fake, predictions.log_ratio, losses.total)
    torch.stack([output.sum() for output in outputs]).sum().backward()
    assert world.x_generated.grad is not None and world.x_generated.grad.abs().max() > 1e-3
    assert all(p.grad is None for group in parameters.values() for p in group)


@pytest.mark.parametrize("home", [None])
def test_without_discriminator_and_fake_score(world: World) -> None:
    predictions, losses = world.predict(differentiates_scores=False, gan_weight=0.0, fake_score=None)
    assert predictions.x0_fake is None and predictions.log_ratio is None and losses.logit is None
    assert torch.equal(predictions.x0_teacher, world.teacher(world.x_sigma, world.sigma, world.condition))
    assert losses.terms.keys() == {"objective"}
    critics = world.method(fake_score=None).critic_losses(
        world.x_generated, None, world.condition, Noised(world.sigma, world.noise)
    )
    assert critics.terms == {}


@homes
@pytest.mark.parametrize(
    "make", [FDistill, UniInstruct, partial(UniInstruct, exact_ratio_gradient=False)], ids=["f", "uni", "detached"]
)
def test_a_split_batch_has_the_gradient_of_the_full_one(world: World, make: Callable[..., Objective]) -> None:
    """With the full batch's mean weight; the halves have other means."""
    objective = make(ForwardKL(), UnitWeighting(), True)
    method = world.method(objective)
    x, condition, noised = world.x_generated, world.condition, Noised(world.sigma, world.noise)
    # So that the ratios differ, but not by so much that they magnify what the size of a batch changes in rounding.
    world.logit.weight.data *= 2 / method.logit(x, condition, noised).abs().max()
    (full,) = torch.autograd.grad(method.generator_losses(x, condition, noised).total, x)
    parts = zip(*(micro_batches(value, 2) for value in (x, condition, *noised)), strict=True)
    halves = [(part, given, Noised(level, noise)) for part, given, level, noise in parts]
    scale = objective.weight_scale(torch.cat([method.log_ratio(*half) for half in halves]))
    ratio = method.log_ratio(x, condition, noised).exp()
    torch.testing.assert_close(scale, ratio.mean())
    assert (scale - ratio[:2].mean()).abs() > 0.01 * scale

    def gradient(weight_scale: Tensor | None) -> Tensor:
        totals = [method.generator_losses(*half, weight_scale).total for half in halves]
        return torch.autograd.grad(torch.stack(totals).mean(), x)[0]

    torch.testing.assert_close(gradient(scale), full, rtol=1e-4, atol=1e-5 * full.abs().max().item())
    assert (gradient(None) - full).norm() > 1e-3 * full.norm()


# The critics' losses.


@homes
@torch.no_grad()
def test_critic_losses_are_those_of_direct_calls(world: World) -> None:
    losses = world.critic_losses(discriminator_weight=0.5)
    x0_fake = world.fake_score(world.x_sigma, world.sigma, world.condition)
    # EDM's weight, (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, of the mean squared error.
    weight = (world.sigma**2 + 0.25) / (world.sigma * 0.5) ** 2
    denoising = weight * (x0_fake - world.x_generated).square().mean((1, 2, 3))
    real, generated = (world.logits(x) for x in (world.x_real_sigma, world.x_sigma))
    logistic = nn.functional.softplus(-real) + nn.functional.softplus(generated)
    assert {name: term.weight for name, term in losses.terms.items()} == {"fake score": 1.0, "discriminator": 0.5}
    torch.testing.assert_close(losses.terms["fake score"].losses, denoising)
    torch.testing.assert_close(losses.terms["discriminator"].losses, logistic)
    torch.testing.assert_close(discriminator_loss(real[:, None], generated[:, None]), logistic)
    torch.testing.assert_close(losses.total, denoising.mean() + 0.5 * logistic.mean())
    expected = {"fake_score_loss": denoising, "discriminator_loss": logistic, "logit_real": real}
    assert losses.diagnostics.keys() == expected.keys() | {"logit_generated"}
    for name, value in (expected | {"logit_generated": generated}).items():
        torch.testing.assert_close(losses.diagnostics[name], value)
    assert (real - generated).abs().max() > 1e-3


@homes
def test_the_discriminator_trains_the_encoder_only_where_it_is_shared(world: World, home: Home) -> None:
    """Neither loss has a gradient by the samples or the teacher."""
    parameters = world.parameters()
    world.critic_losses().terms["discriminator"].mean.backward()
    trained = {
        name: [p.grad is not None and bool((p.grad != 0).any()) for p in own] for name, own in parameters.items()
    }
    assert all(trained["discriminator"]) and not any(trained["teacher"])
    if home != "fake_score":
        assert not any(trained["fake"])
    else:  # the encoder, and not the decoder
        direct = discriminator_loss(*(world.logits(x)[:, None] for x in (world.x_real_sigma, world.x_sigma)))
        expected = torch.autograd.grad(direct.mean(), parameters["fake"], allow_unused=True)
        assert any(gradient is None for gradient in expected) and sum(trained["fake"]) > 10
        for parameter, gradient in zip(parameters["fake"], expected, strict=True):
            mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(mine, torch.zeros_like(mine) if gradient is None else gradient)
    world.critic_losses().terms["fake score"].mean.backward()
    assert all(p.grad is not None for p in parameters["fake"])
    assert world.x_generated.grad is None and all(p.grad is None for p in parameters["teacher"])


@homes
@pytest.mark.parametrize("absent", ["x_real", "noised_real"])
def test_a_discriminator_without_real_samples_is_refused(world: World, absent: str) -> None:
    noised, noised_real = Noised(world.sigma, world.noise), Noised(world.sigma, world.noise_real)
    real: dict[str, Any] = {"x_real": world.x_real, "noised_real": noised_real} | {absent: None}
    with pytest.raises(ValueError, match="x_real and noised_real are missing.*real samples"):
        world.method().critic_losses(world.x_generated, condition=world.condition, noised=noised, **real)


@homes
@pytest.mark.parametrize("penalty", [ExactPenalty(0.5, False), FiniteDifferencePenalty(0.5, False, step=1e-3)])
def test_a_penalty_is_of_the_logits_gradient_at_the_real_samples(world: World, penalty: GradientPenalty) -> None:
    losses = world.critic_losses(penalty=penalty, discriminator_weight=0.25)
    term = losses.terms["penalty"]
    assert term.weight == 0.125
    x = world.x_real_sigma.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(world.logits(x).sum(), x)
    along = (gradient * world.noise.roll(1, 0)).flatten(1).sum(1).square()
    expected = gradient.square().flatten(1).sum(1) if isinstance(penalty, ExactPenalty) else along
    torch.testing.assert_close(term.losses, expected, rtol=0.05, atol=1e-2 * float(expected.mean()))
    term.mean.backward()
    trained = {name: any(p.grad is not None for p in own) for name, own in world.parameters().items()}
    assert trained["discriminator"] and not trained["teacher"]
    assert trained["fake"] == (world.host is world.fake_score)


@homes
@pytest.mark.parametrize("penalty", [ExactPenalty(0.5, True), FiniteDifferencePenalty(0.5, True, step=1e-3)])
def test_a_penalty_matches_the_scores_at_the_generated_samples(world: World, penalty: GradientPenalty) -> None:
    """In units of the noise: a shift of its u moves the noised sample by sigma u."""
    with torch.no_grad():
        inputs = (world.x_sigma, world.sigma, world.condition)
        x0_teacher, x0_fake = (one(*inputs) for one in (world.teacher, world.fake_score))
    world.teacher.guidance = 2.0  # which the samples of the discriminator do not have
    term = world.critic_losses(penalty=penalty).terms["penalty"]
    x, sigma = world.x_sigma.clone().requires_grad_(), world.sigma[:, None, None, None]
    (gradient,) = torch.autograd.grad(world.logits(x).sum(), x)
    offset = sigma * gradient - (x0_teacher - x0_fake) / sigma
    along = (offset * world.noise.roll(1, 0)).flatten(1).sum(1).square()
    expected = offset.square().flatten(1).sum(1) if isinstance(penalty, ExactPenalty) else along
    torch.testing.assert_close(term.losses, expected, rtol=0.05, atol=1e-2 * float(expected.mean()))
    term.mean.backward()
    trained = {name: any(p.grad is not None for p in own) for name, own in world.parameters().items()}
    assert trained == {"discriminator": True, "teacher": False, "fake": world.host is world.fake_score}


FREE_OF_RATIO = FDistill(ReverseKL(), UnitWeighting(), normalize_weight=True)


@pytest.mark.parametrize(
    ("home", "options", "message"),
    [
        ("teacher", {"fake_score": None}, "matches the scores, and this objective has no fake score"),
        ("samples", {"view": View(0.25), "objective": FREE_OF_RATIO}, "other ones, by discriminator.noise_level"),
    ],
)
def test_scores_that_there_are_not(world: World, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        world.method(penalty=ExactPenalty(0.5, True), **options)


@pytest.mark.parametrize("home", ["teacher", "fake_score", "samples", "pretrained"])
def test_a_discriminator_with_a_noise_level_of_its_own(world: World, home: str) -> None:
    """Both losses see every sample there, whatever the objective's levels are."""
    options: dict[str, Any] = {"view": View(0.25)}
    if home == "pretrained":
        world.host = options["pretrained"] = PretrainedFeatures(load_classifier("digits"), (1, 8, 8))
        shapes = world.host.feature_shapes
        world.discriminator = PooledHead(shapes, 3, "pretrained", 8, levels=[-1], projection=False)
        nn.init.normal_(world.discriminator.heads[0].logit.weight)

    def logits(x: Tensor, noise: Tensor) -> Tensor:
        level = torch.full((4,), 0.25)
        features = world.host(x + 0.25 * noise, level, world.condition, outputs="features", levels=(-1,))
        return world.discriminator(features, level, world.condition)[:, 0]

    real, generated = logits(world.x_real, world.noise_real), logits(world.x_generated, world.noise)
    logistic = nn.functional.softplus(-real) + nn.functional.softplus(generated)
    objective = FDistill(ReverseKL(), UnitWeighting(), True)
    critics = world.critic_losses(objective=objective, **options)
    torch.testing.assert_close(critics.terms["discriminator"].losses, logistic)
    plain = world.critic_losses(objective=objective, discriminator=None)
    torch.testing.assert_close(critics.terms["fake score"].losses, plain.terms["fake score"].losses)
    noised = Noised(world.sigma, world.noise)
    method = world.method(objective, gan_weight=0.5, **options)
    losses = method.generator_losses(world.x_generated, world.condition, noised)
    adversarial = nn.functional.softplus(-generated)
    torch.testing.assert_close(losses.terms["adversarial"].losses, adversarial)
    (gradient,) = torch.autograd.grad(losses.terms["adversarial"].losses.sum(), world.x_generated, retain_graph=True)
    (expected,) = torch.autograd.grad(adversarial.sum(), world.x_generated)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert expected.abs().max() > 1e-5 and all(p.grad is None for p in world.host.parameters())
    torch.testing.assert_close(method.logit(world.x_generated, world.condition, noised), generated.detach())
    with pytest.raises(ValueError, match=r"noise_level=0.25: this divergence needs the density ratio at every noise"):
        world.method(FDistill(ForwardKL(), UnitWeighting(), True), **options)


@homes
def test_augmentation_is_of_all_that_the_discriminator_sees(world: World) -> None:
    """Before the noise, in both losses; the generator's gradient passes through it."""
    augment, numbers = DifferentiableAugmentation(0.5, 1.0, 0.5, 0.125, 0.5), torch.rand(4, 2, 7)

    def logits(x: Tensor, noise: Tensor, number: int) -> Tensor:
        return world.logits(add_noise(augment(x, numbers[:, number]), noise, world.sigma))

    real, generated = logits(world.x_real, world.noise_real, 0), logits(world.x_generated, world.noise, 1)
    logistic = nn.functional.softplus(-real) + nn.functional.softplus(generated)
    noised, noised_real = Noised(world.sigma, world.noise), Noised(world.sigma, world.noise_real)
    method = world.method(FDistill(ReverseKL(), UnitWeighting(), True), gan_weight=0.5, view=View(None, augment))
    inputs = world.x_generated, world.x_real, world.condition, noised, noised_real
    critics = method.critic_losses(*inputs, numbers=numbers)
    torch.testing.assert_close(critics.terms["discriminator"].losses, logistic)
    plain = world.critic_losses(objective=method.objective, discriminator=None).terms["fake score"]
    torch.testing.assert_close(critics.terms["fake score"].losses, plain.losses)
    losses = method.generator_losses(world.x_generated, world.condition, noised, numbers=numbers[:, 1])
    adversarial = nn.functional.softplus(-generated)
    torch.testing.assert_close(losses.terms["adversarial"].losses, adversarial)
    (gradient,) = torch.autograd.grad(losses.terms["adversarial"].losses.sum(), world.x_generated, retain_graph=True)
    (expected,) = torch.autograd.grad(adversarial.sum(), world.x_generated)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    logit = method.logit(world.x_generated, world.condition, noised)
    torch.testing.assert_close(logit, world.logits(world.x_sigma).detach())
    assert (logit - generated).abs().max() > 1e-3 and expected.abs().max() > 1e-5
    with pytest.raises(ValueError, match="numbers are missing: the discriminator's augmentation"):
        method.critic_losses(*inputs)


# Discriminators with several logits, and the published normalisation.


@pytest.mark.parametrize("home", ["teacher"])
@pytest.mark.parametrize("features_from", ["teacher", "fake_score"])
def test_a_head_at_each_resolution_reads_the_features_of_its_own(
    world: World, features_from: Literal["teacher", "fake_score"]
) -> None:
    world.discriminator = StridedHeads([(16, 8, 8), (32, 4, 4)], 3, features_from, None, groups=4)
    world.host = world.teacher if features_from == "teacher" else world.fake_score

    def logits(x_sigma: Tensor) -> Tensor:
        shallow, deep = world.host(x_sigma, world.sigma, world.condition, outputs="features", levels=(0, 1))
        return torch.cat(
            [head(x).flatten(1) for head, x in zip(world.discriminator.heads, (shallow, deep), strict=True)], 1
        )

    real, generated = logits(world.x_real_sigma), logits(world.x_sigma)
    assert real.shape == (4, 2) and (real - generated).abs().min() > 1e-5
    logistic = (nn.functional.softplus(-real) + nn.functional.softplus(generated)).mean(1)
    critics = world.critic_losses()
    torch.testing.assert_close(critics.terms["discriminator"].losses, logistic)
    torch.testing.assert_close(critics.diagnostics["logit_real"], real.mean(1))
    predictions, losses = world.predict(differentiates_scores=False, gan_weight=0.25, normalizer=None)
    torch.testing.assert_close(predictions.log_ratio, generated.mean(1))
    adversarial = nn.functional.softplus(-generated).mean(1)
    torch.testing.assert_close(losses.terms["adversarial"].losses, adversarial)
    (gradient,) = torch.autograd.grad(losses.terms["adversarial"].losses.sum(), world.x_generated)
    assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize("home", ["fake_score"])
def test_the_channel_mean_trains_the_encoder_alone_and_is_bounded_in_the_generators_loss(world: World) -> None:
    world.discriminator = ChannelMean([(32, 4, 4)], 3, "fake_score", 1e-3)
    (features,) = world.fake_score(world.x_sigma, world.sigma, world.condition, outputs="features")
    logits = features.mean(1).flatten(1)
    predictions, losses = world.predict(differentiates_scores=False, gan_weight=0.25, normalizer=None)
    torch.testing.assert_close(predictions.log_ratio, logits.mean(1))
    bounded = nn.functional.softplus(-logits.clamp(-1e-3, 1e-3)).mean(1)
    torch.testing.assert_close(losses.terms["adversarial"].losses, bounded)
    world.critic_losses().terms["discriminator"].mean.backward()
    trained = {name for name, p in world.fake_score.named_parameters() if p.grad is not None and p.grad.any()}
    assert len(trained) > 10 and not any(".dec." in name for name in trained)


@pytest.mark.parametrize("home", ["teacher"])
def test_the_published_normalization_is_of_each_micro_batch(world: World) -> None:
    """Its bins and the weights' mean; the other normalisation's mean is that of the full batch."""
    published = LinearBins(LogUniformSigma(0.1, 10.0), 1, 0.1, 10.0, 0.5, ratio_min=0.1, ratio_max=20.0)
    objective = FDistill(ForwardKL(), UnitWeighting(), True)
    assert world.method(objective).needs_batch_mean
    assert not world.method(objective, normalizer=published).needs_batch_mean
    assert not world.method(FDistill(ReverseKL(), UnitWeighting(), True)).needs_batch_mean
    method = world.method(objective, normalizer=published)
    means = [1.0]
    for x, condition, sigma, noise in zip(
        *(micro_batches(value, 2) for value in (world.x_generated, world.condition, world.sigma, world.noise)),
        strict=True,
    ):
        losses = method.generator_losses(x, condition, Noised(sigma, noise))
        assert losses.logit is not None
        means.append(0.5 * means[-1] + 0.5 * losses.logit.exp().mean().item())
        torch.testing.assert_close(losses.diagnostics["log_ratio"], losses.logit - math.log(means[-1]))
        assert published.means.item() == pytest.approx(means[-1], rel=1e-5)


def test_the_total_is_the_weighted_sum_of_the_means() -> None:
    losses = Losses({"one": Term(torch.tensor([1.0, 3.0])), "two": Term(torch.tensor([4.0, 8.0]), weight=0.5)})
    assert losses.total == 2 + 0.5 * 6


def test_frozen_restores_after_an_error() -> None:
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    with pytest.raises(KeyError), frozen(network, None):
        assert not network.weight.requires_grad
        raise KeyError
    assert network.weight.requires_grad and not network.bias.requires_grad


class Plane(Discriminator):
    """The logit ``direction . x_sigma``."""

    features_from = "samples"

    def __init__(self, direction: Tensor) -> None:
        super().__init__()
        self.direction = nn.Parameter(direction)

    def forward(self, features: Sequence[Tensor], sigma: Tensor, condition: Any) -> Tensor:
        return (features[0] * self.direction).flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("own_level", [False, True])
@pytest.mark.parametrize("home", [None])
def test_a_gan_alone_has_the_gradient_of_its_critic(world: World, own_level: bool) -> None:
    """``-w sigmoid(-logit) direction / B``, without any teacher."""
    method = Method(None, Adversarial(), discriminator=Plane(world.noise_real[0]), gan_weight=0.25)
    noised, own = Noised(world.sigma, world.noise), Noised(world.sigma.flip(0), world.noise_real)
    losses = method.generator_losses(world.x_generated, world.condition, noised, None, own if own_level else None)
    x_sigma = (own if own_level else noised).add_to(world.x_generated.detach())
    logit = (x_sigma * world.noise_real[0]).sum((1, 2, 3))
    assert logit.std() > 1
    torch.testing.assert_close(losses.total, 0.25 * nn.functional.softplus(-logit).mean())
    assert losses.terms.keys() == {"adversarial"} and losses.diagnostics.keys() == {"adversarial_loss"}
    (gradient,) = torch.autograd.grad(losses.total, world.x_generated)
    expected = -0.25 / 4 * torch.sigmoid(-logit)[:, None, None, None] * world.noise_real[0]
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("home", ["samples"])
@pytest.mark.parametrize(
    "options, message",
    [
        ({"gan_weight": 0.0}, "the adversarial term is missing, which is the whole loss: set a gan_weight above 0"),
        ({"gan_weight": 1.0, "gan_weighting": "distance"}, "x0_teacher is missing"),
    ],
)
def test_a_gan_alone_without_what_it_needs(world: World, options: dict[str, Any], message: str) -> None:
    method = world.method(Adversarial(), fake_score=None, **options)
    with pytest.raises(ValueError, match=message):
        method.generator_losses(world.x_generated, world.condition, Noised(world.sigma, world.noise))

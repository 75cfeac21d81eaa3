"""A distillation method: the losses of the fake score, the discriminator and the generator.

An iteration updates the fake score and the discriminator with :meth:`Method.critic_losses` on generated samples, once
or several times, then the generator with :meth:`Method.generator_losses`. The losses are functions of samples, noise
levels and noise. They use no random numbers, optimisers, processes or configuration.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from onestep.denoiser import Condition, concatenate_conditions
from onestep.distillation.penalize import check_penalty, penalize
from onestep.distillation.view import View
from onestep.models.base import DenoiserNetwork
from onestep.models.discriminator import Discriminator
from onestep.models.freezing import frozen
from onestep.models.guidance import unguided
from onestep.models.sample_networks import NOISED_SAMPLES
from onestep.noise import Noised
from onestep.objectives.adversarial import discriminator_loss, generator_loss, log_ratio_of
from onestep.objectives.base import Objective, Predictions
from onestep.objectives.denoising import ErrorWeight, denoising_loss, error_weight
from onestep.objectives.density_ratio import RatioNormalizer
from onestep.objectives.gradient_penalty import GradientPenalty
from onestep.objectives.losses import Losses, Term
from onestep.objectives.weighting import mean_inverse_distance
from onestep.precision import without_bf16


@dataclass
class Method:
    """A distillation method: an objective and the networks that its terms need.

    Args:
        teacher: the frozen denoiser of the target distribution p.
        objective: the generator's loss as a function of the networks' predictions.
        fake_score: the denoiser of the generator's distribution q; None if the objective needs none.
        discriminator: its logit estimates log p/q; None without adversarial term and density ratio.
        pretrained: the network of a discriminator on pretrained features; None for others.
        normalizer: normalises the ratio's mean to 1 at each noise level; None for the raw ratio.
        objective_weight: weight of the objective in the generator's loss; without effect if that has no losses.
        gan_weight: weight of the adversarial term in the generator's loss; 0 for none.
        gan_weighting: "distance" multiplies that term by :func:`mean_inverse_distance`.
        penalty: of the discriminator's gradient at noised real or generated samples; None for none.
        view: what the discriminator sees.
        discriminator_weight: weight of the discriminator's loss in the critics' loss.
        discriminator_weighting: "fake_score" multiplies that loss by the batch mean of the weight of the fake score's.
        error_weight: the weight of the fake score's error, see :func:`onestep.objectives.denoising.error_weight`.
        error_sum: sum the fake score's error over a sample's dimensions, instead of their mean.
        guided: False if the objective's teacher is without its guidance.

    Raises:
        ValueError: if the objective needs a density ratio that the discriminator does not have, see :class:`View`, or
            the penalty scores that there are not, see :func:`check_penalty`.
    """

    teacher: Any
    objective: Objective
    fake_score: DenoiserNetwork | None = None
    discriminator: Discriminator | None = None
    pretrained: nn.Module | None = None
    normalizer: RatioNormalizer | None = None
    penalty: GradientPenalty | None = None
    objective_weight: float = 1.0
    gan_weight: float = 0.0
    gan_weighting: Literal["constant", "distance"] = "constant"
    view: View = field(default_factory=View)
    discriminator_weight: float = 1.0
    discriminator_weighting: Literal["constant", "fake_score"] = "constant"
    error_weight: ErrorWeight = "network"
    error_sum: bool = False
    guided: bool = True

    def __post_init__(self) -> None:
        self.view.check(self.objective)
        check_penalty(self.penalty, self.fake_score, self.view)

    @property
    def host(self) -> Any:
        """The network whose features are the discriminator's input; None without discriminator."""
        if self.discriminator is None:
            return None
        hosts = {
            "teacher": self.teacher,
            "fake_score": self.fake_score,
            "pretrained": self.pretrained,
            "samples": NOISED_SAMPLES,
        }
        return hosts[self.discriminator.features_from]

    @property
    def needs_batch_mean(self) -> bool:
        """True if micro-batches need ``weight_scale``, the mean of the full batch."""
        return self.objective.needs_ratio and not (self.normalizer is not None and self.normalizer.of_rounds)

    def critic_losses(
        self, x_generated: Tensor, x_real: Tensor | None, condition: Condition, noised: Noised,
        noised_real: Noised | None = None, noised_generated: Noised | None = None,
        condition_real: Condition | None = None, numbers: Tensor | None = None,
    ) -> Losses:  # fmt: skip
        """The fake score's denoising loss and the discriminator's logistic loss.

        Args:
            x_generated: samples [B, ...] of the generator, in data units; the losses are not differentiated by them.
            x_real: real samples [B, ...], for the discriminator; None without one.
            condition: condition of the generated samples.
            noised: levels and noise of the generated samples in the fake score's loss.
            noised_real: levels and noise of the real samples; None without a discriminator.
            noised_generated: levels and noise of the generated samples in the discriminator's loss; None for those of
                the fake score's loss, which save a pass if the discriminator shares its encoder.
            condition_real: condition of the real samples; None for that of the generated ones.
            numbers: uniform numbers [B, 2, K] of the augmentation of real and generated samples.

        Raises:
            ValueError: if there is a discriminator and ``x_real``, ``noised_real`` or its ``numbers`` are missing.
        """
        losses = Losses()
        x_generated = x_generated.detach()
        x_sigma, sigma = noised.add_to(x_generated), noised.sigma
        features: Sequence[Tensor] = ()
        factor: Tensor | float = 1.0  # of the discriminator's loss
        levels = () if self.discriminator is None else self.discriminator.levels
        if self.fake_score is not None:
            if self.host is self.fake_score and noised_generated is None and not self.view.is_own:
                x0_fake, *features = self.fake_score(x_sigma, sigma, condition, outputs="both", levels=levels)
            else:
                x0_fake = self.fake_score(x_sigma, sigma, condition)
            weight = error_weight(self.fake_score, sigma, self.error_weight)
            denoising = denoising_loss(x0_fake, x_generated, weight)
            losses.terms["fake score"] = Term(denoising, x_generated[0].numel() if self.error_sum else 1.0)
            losses.diagnostics["fake_score_loss"] = denoising
            if self.discriminator_weighting == "fake_score":
                factor = weight.mean()
        if self.discriminator is not None and self.host is not None:
            if x_real is None or noised_real is None:
                raise ValueError("x_real and noised_real are missing: the discriminator compares with real samples")
            of_real, of_generated = (None, None) if numbers is None else numbers.unbind(1)
            x_real_sigma, sigma_real = self.view(x_real, noised_real, of_real)
            condition_real = condition if condition_real is None else condition_real
            x_sigma, sigma = self.view(x_generated, noised_generated or noised, of_generated)
            sigmas, conditions = torch.cat([sigma_real, sigma]), concatenate_conditions(condition_real, condition)
            if features:  # of the fake score, from the pass above
                features_real = self._features(x_real_sigma, sigma_real, condition_real)
                features = [torch.cat(pair) for pair in zip(features_real, features, strict=True)]
            else:
                with torch.set_grad_enabled(self.host is self.fake_score and torch.is_grad_enabled()):
                    features = self._features(torch.cat([x_real_sigma, x_sigma]), sigmas, conditions)
            logits_real, logits_generated = self.discriminator(features, sigmas, conditions).chunk(2)
            logistic = discriminator_loss(logits_real, logits_generated)
            losses.terms["discriminator"] = Term(logistic * factor, self.discriminator_weight)
            if self.penalty is not None:
                # Of another sample than the one whose level it was drawn for, so independent of both samples.
                direction = noised.noise.roll(1, 0)
                at = (x_real_sigma, sigma_real, condition_real)
                if self.penalty.matches_scores:
                    at = (noised.add_to(x_generated), noised.sigma, condition)
                read, scores = (self.host, self.discriminator), (self.teacher, self.fake_score)
                penalties = penalize(self.penalty, self.logits, read, scores, at, direction)
                losses.terms["penalty"] = Term(penalties, self.discriminator_weight * self.penalty.weight)
                losses.diagnostics["gradient_penalty"] = penalties
            losses.diagnostics |= {
                "discriminator_loss": logistic,
                "logit_real": log_ratio_of(logits_real), "logit_generated": log_ratio_of(logits_generated),
            }  # fmt: skip
        return losses

    def logits(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The discriminator's logits [B, P], from a pass of its own."""
        assert self.discriminator is not None
        logits: Tensor = self.discriminator(self._features(x_sigma, sigma, condition), sigma, condition)
        return logits

    def _features(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """The discriminator's input, from a pass of the host that ends there."""
        assert self.host is not None and self.discriminator is not None
        features: tuple[Tensor, ...] = self.host(
            x_sigma, sigma, condition, outputs="features", levels=self.discriminator.levels
        )
        return features

    def generator_losses(
        self, x_generated: Tensor, condition: Condition, noised: Noised, weight_scale: Tensor | None = None,
        noised_gan: Noised | None = None, numbers: Tensor | None = None,
    ) -> Losses:  # fmt: skip
        """The objective and the adversarial term for samples with a graph, for example of a network or a renderer.

        All networks of the method are frozen. The gradient reaches only the samples and their graph.

        Args:
            x_generated: samples [B, ...] in data units that require a gradient.
            condition: condition of the samples.
            noised: levels and noise of the samples.
            weight_scale: see :class:`onestep.objectives.base.Predictions`.
            noised_gan: levels and noise of the adversarial term; None for ``noised``, which saves a pass.
            numbers: uniform numbers [B, K] of the augmentation in the adversarial term.
        """
        inputs = x_sigma, sigma, _ = noised.add_to(x_generated), noised.sigma, condition
        noised_gan = noised if self.view.is_own and noised_gan is None else noised_gan
        gan_here = self.gan_weight > 0 and noised_gan is None
        with frozen(self.teacher, self.fake_score, self.discriminator):
            host = self.host if gan_here or self.objective.needs_ratio else None
            x0_teacher: Tensor | None = None
            x0_fake: Tensor | None = None
            features: Sequence[Tensor] = ()
            if self.objective.needs_teacher:
                with nullcontext() if self.guided else unguided(self.teacher):
                    x0_teacher, features = self._predict(self.teacher, inputs, self.teacher is host, gan_here)
            if self.fake_score is not None:
                x0_fake, fake_features = self._predict(self.fake_score, inputs, self.fake_score is host, gan_here)
                features = fake_features or features
            logits = None
            if self.discriminator is not None and host is not None:
                with torch.set_grad_enabled(gan_here or self.objective.differentiates_scores):
                    features = features or self._features(*inputs)  # of a host that makes no prediction
                    logits = self.discriminator(features, sigma, condition)
            logit = None if logits is None else log_ratio_of(logits)
            log_ratio = logit if logit is None or self.normalizer is None else self.normalizer(logit, sigma)
            adversarial = self._adversarial(logits, x_generated, condition, noised_gan, numbers)
        predictions = Predictions(
            x_generated, x_sigma, sigma, x0_teacher, x0_fake, log_ratio, adversarial, weight_scale
        )
        objective, diagnostics = self.objective(predictions)
        losses = Losses({}, diagnostics, None if logit is None else logit.detach())
        if objective is not None:
            losses.terms["objective"] = Term(objective, self.objective_weight)
        if adversarial is not None:
            factor = mean_inverse_distance(predictions) if self.gan_weighting == "distance" else 1.0
            losses.terms["adversarial"] = Term(adversarial * factor, self.gan_weight)
            losses.diagnostics["adversarial_loss"] = adversarial
        if objective is not None:
            losses.diagnostics["loss"] = objective
        return losses

    def _adversarial(
        self, logits: Tensor | None, x_generated: Tensor, condition: Condition, noised: Noised | None,
        numbers: Tensor | None,
    ) -> Tensor | None:  # fmt: skip
        """The generator's adversarial losses [B], at levels of their own if ``noised`` is not None."""
        if self.gan_weight == 0 or self.discriminator is None or self.host is None:
            return None
        if noised is not None:
            logits = self.logits(*self.view(x_generated, noised, numbers), condition)
        return None if logits is None else generator_loss(logits, self.discriminator.logit_bound)

    def log_ratio(self, x_generated: Tensor, condition: Condition, noised: Noised) -> Tensor:
        """The normalised log p/q [B], without a graph; see :meth:`generator_losses` for the arguments."""
        logit = self.logit(x_generated, condition, noised)
        return logit if self.normalizer is None else self.normalizer(logit, noised.sigma)

    @torch.no_grad()
    def logit(self, x: Tensor, condition: Condition, noised: Noised) -> Tensor:
        """The discriminator's log p/q [B] of samples ``x`` [B, ...], generated or real, without a graph."""
        assert self.discriminator is not None
        x_sigma, sigma = View(self.view.noise_level)(x, noised)  # not augmented
        with without_bf16(self.host, x_sigma.device):
            features = self._features(x_sigma, sigma, condition)
        return log_ratio_of(self.discriminator(features, sigma, condition))

    def _predict(
        self, network: nn.Module, inputs: tuple[Tensor, Tensor, Condition], is_host: bool, gan_here: bool
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """The x0-prediction, and the features if ``network`` is the host; both with a graph only if it is needed.

        In float32 where autocast is to bf16, as objectives subtract the predictions.
        """
        through_scores = self.objective.differentiates_scores
        if self.discriminator is None or not is_host:
            with torch.set_grad_enabled(through_scores), without_bf16(network, inputs[0].device):
                return network(*inputs), ()
        options = {"outputs": "both", "levels": self.discriminator.levels, "prediction_grad": through_scores}
        with torch.set_grad_enabled(through_scores or gan_here), without_bf16(network, inputs[0].device):
            x0, *features = network(*inputs, **options)
        return x0, features

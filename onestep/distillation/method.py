"""A distillation method: the losses of the fake score, the discriminator and the generator.

An iteration updates the fake score and the discriminator with :meth:`Method.critic_losses` on generated samples, once
or several times, then the generator with :meth:`Method.generator_losses`. The losses are functions of samples, noise
levels and noise. They use no random numbers, optimisers, processes or configuration.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onestep.denoiser import Condition, concatenate_conditions
from onestep.models.base import DenoiserNetwork
from onestep.models.discriminator import Discriminator
from onestep.noise import add_noise
from onestep.objectives.adversarial import discriminator_loss, generator_loss, log_ratio_of
from onestep.objectives.base import Objective, Predictions
from onestep.objectives.denoising import denoising_loss
from onestep.objectives.density_ratio import RatioNormalizer
from onestep.objectives.losses import Losses, Term


@contextmanager
def frozen(*networks: nn.Module | None) -> Iterator[None]:
    """Context in which no parameter of ``networks`` requires a gradient."""
    parameters = [p for network in networks if network is not None for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@dataclass
class Method:
    """A distillation method: an objective and the networks that its terms need.

    Args:
        teacher: the frozen denoiser of the target distribution p.
        objective: the generator's loss as a function of the networks' predictions.
        fake_score: the denoiser of the generator's distribution q; None if the objective needs none.
        discriminator: its logit estimates log p/q; None without adversarial term and density ratio.
        normalizer: normalises the ratio's mean to 1 at each noise level; None for the raw ratio.
        gan_weight: weight of the adversarial term in the generator's loss; 0 for none.
        discriminator_weight: weight of the discriminator's loss in the critics' loss; the fake score's is 1.
    """

    teacher: Any
    objective: Objective
    fake_score: DenoiserNetwork | None = None
    discriminator: Discriminator | None = None
    normalizer: RatioNormalizer | None = None
    gan_weight: float = 0.0
    discriminator_weight: float = 1.0

    @property
    def host(self) -> Any:
        """The network whose features are the discriminator's input."""
        if self.discriminator is None:
            return None
        return self.fake_score if self.discriminator.features_from == "fake_score" else self.teacher

    @property
    def needs_batch_mean(self) -> bool:
        """True if micro-batches need ``weight_scale``, the mean of the full batch."""
        return self.objective.needs_ratio and not (self.normalizer is not None and self.normalizer.of_rounds)

    def critic_losses(
        self, x_generated: Tensor, x_real: Tensor | None, condition: Condition, sigma: Tensor, noise: Tensor,
        noise_real: Tensor | None = None,
    ) -> Losses:  # fmt: skip
        """The fake score's denoising loss and the discriminator's logistic loss, on the same noised samples.

        Args:
            x_generated: samples [B, ...] of the generator, in data units; the losses are not differentiated by them.
            x_real: real samples [B, ...], for the discriminator; None without one.
            condition: condition of generated and real samples.
            sigma: noise levels [B], in data units.
            noise, noise_real: standard normal noise [B, ...] for generated and real samples.

        Raises:
            ValueError: if there is a discriminator and ``x_real`` or ``noise_real`` is missing.
        """
        losses = Losses()
        x_generated = x_generated.detach()
        x_sigma = add_noise(x_generated, noise, sigma)
        features: Sequence[Tensor] = ()
        levels = () if self.discriminator is None else self.discriminator.levels
        if self.fake_score is not None:
            if self.host is self.fake_score:
                x0_fake, *features = self.fake_score(x_sigma, sigma, condition, outputs="both", levels=levels)
            else:
                x0_fake = self.fake_score(x_sigma, sigma, condition)
            denoising = denoising_loss(self.fake_score, x0_fake, x_generated, sigma)
            losses.terms["fake score"] = Term(denoising)
            losses.diagnostics["fake_score_loss"] = denoising
        if self.discriminator is not None and self.host is not None:
            if x_real is None or noise_real is None:
                raise ValueError("x_real and noise_real are missing: the discriminator compares with real samples")
            x_real_sigma = add_noise(x_real, noise_real, sigma)
            if features:  # of the fake score, from the pass above
                features_real = self.host(x_real_sigma, sigma, condition, outputs="features", levels=levels)
                features = [torch.cat(pair) for pair in zip(features_real, features, strict=True)]
            else:
                with torch.no_grad():
                    both = torch.cat([x_real_sigma, x_sigma]), torch.cat([sigma, sigma])
                    conditions = concatenate_conditions(condition, condition)
                    features = self.host(*both, conditions, outputs="features", levels=levels)
            logits_real, logits_generated = self.discriminator(features).chunk(2)
            logistic = discriminator_loss(logits_real, logits_generated)
            losses.terms["discriminator"] = Term(logistic, self.discriminator_weight)
            losses.diagnostics |= {
                "discriminator_loss": logistic,
                "logit_real": log_ratio_of(logits_real), "logit_generated": log_ratio_of(logits_generated),
            }  # fmt: skip
        return losses

    def generator_losses(
        self, x_generated: Tensor, condition: Condition, sigma: Tensor, noise: Tensor,
        weight_scale: Tensor | None = None,
    ) -> Losses:  # fmt: skip
        """The objective and the adversarial term for samples with a graph, for example of a network or a renderer.

        All networks of the method are frozen. The gradient reaches only the samples and their graph.

        Args:
            x_generated: samples [B, ...] in data units that require a gradient.
            condition: condition of the samples.
            sigma: noise levels [B], in data units.
            noise: standard normal noise [B, ...].
            weight_scale: see :class:`onestep.objectives.base.Predictions`.
        """
        x_sigma = add_noise(x_generated, noise, sigma)
        with frozen(self.teacher, self.fake_score, self.discriminator):
            x0_teacher, teacher_features = self._predict(self.teacher, x_sigma, sigma, condition)
            x0_fake: Tensor | None = None
            features = teacher_features
            if self.fake_score is not None:
                x0_fake, fake_features = self._predict(self.fake_score, x_sigma, sigma, condition)
                features = fake_features or features
            logits = self.discriminator(features) if self.discriminator is not None and features else None
            logit = None if logits is None else log_ratio_of(logits)
            log_ratio = logit if logit is None or self.normalizer is None else self.normalizer(logit, sigma)
        predictions = Predictions(x_generated, x_sigma, sigma, x0_teacher, x0_fake, log_ratio, weight_scale)
        objective, diagnostics = self.objective(predictions)
        losses = Losses({"objective": Term(objective)}, diagnostics, None if logit is None else logit.detach())
        if self.discriminator is not None and logits is not None and self.gan_weight > 0:
            adversarial = generator_loss(logits, self.discriminator.logit_bound)
            losses.terms["adversarial"] = Term(adversarial, self.gan_weight)
            losses.diagnostics["adversarial_loss"] = adversarial
        losses.diagnostics["loss"] = objective
        return losses

    @torch.no_grad()
    def log_ratio(self, x_generated: Tensor, condition: Condition, sigma: Tensor, noise: Tensor) -> Tensor:
        """The normalised log p/q [B], without a graph; see :meth:`generator_losses` for the arguments."""
        assert self.host is not None and self.discriminator is not None
        x_sigma = add_noise(x_generated, noise, sigma)
        features = self.host(x_sigma, sigma, condition, outputs="features", levels=self.discriminator.levels)
        logit = log_ratio_of(self.discriminator(features))
        return logit if self.normalizer is None else self.normalizer(logit, sigma)

    def _predict(
        self, network: nn.Module, x_sigma: Tensor, sigma: Tensor, condition: Condition
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """The x0-prediction, and the features if ``network`` is the host; both with a graph only if it is needed."""
        through_scores = self.objective.differentiates_scores
        if self.discriminator is None or network is not self.host:
            with torch.set_grad_enabled(through_scores):
                return network(x_sigma, sigma, condition), ()
        options = {"outputs": "both", "levels": self.discriminator.levels, "prediction_grad": through_scores}
        with torch.set_grad_enabled(through_scores or self.gan_weight > 0):
            x0, *features = network(x_sigma, sigma, condition, **options)
        return x0, features

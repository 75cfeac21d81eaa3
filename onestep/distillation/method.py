"""The method on one page: the losses of the fake score, the discriminator and the generator.

An iteration updates the fake score and the discriminator by :meth:`Method.critic_losses` on generated samples, once or
several times, then the generator by :meth:`Method.generator_losses`. Each is a function of the samples, noise levels
and noise that it is given: it draws nothing, steps nothing, and knows no loop, process or configuration.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onestep.denoiser import Condition, concatenate_conditions
from onestep.models.base import DenoiserNetwork
from onestep.models.discriminator import Discriminator
from onestep.noise import add_noise
from onestep.objectives.adversarial import discriminator_loss, generator_loss
from onestep.objectives.base import Objective, Predictions
from onestep.objectives.denoising import denoising_loss
from onestep.objectives.density_ratio import RatioNormalizer
from onestep.objectives.losses import Losses, Term


@contextmanager
def frozen(*networks: nn.Module | None) -> Iterator[None]:
    """Within the context no parameter of ``networks`` is differentiated; a backward pass skips their gradients."""
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
        teacher: the frozen denoiser whose distribution p is matched.
        objective: the generator's loss as a function of the networks' predictions.
        fake_score: the denoiser of the generator's own distribution q; None for an objective that needs none.
        discriminator: its logit estimates log p/q; None without adversarial term and density ratio.
        normalizer: keeps the ratio's mean at 1 at each noise level; None for the raw ratio.
        gan_weight: weight of the adversarial term in the generator's loss; 0 for none.
        discriminator_weight: weight of the discriminator's loss beside the fake score's.
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
        """The network whose features the discriminator reads."""
        if self.discriminator is None:
            return None
        return self.fake_score if self.discriminator.features_from == "fake_score" else self.teacher

    def critic_losses(
        self, x_generated: Tensor, x_real: Tensor | None, condition: Condition, sigma: Tensor, noise: Tensor,
        noise_real: Tensor | None = None,
    ) -> Losses:  # fmt: skip
        """Denoising score matching of the fake score and the discriminator's logistic loss, at the same noised samples.

        Args:
            x_generated: samples [B, ...] of the generator, in data units; nothing is differentiated by them.
            x_real: as many real samples, for the discriminator; None without one.
            condition: what both are conditioned on.
            sigma: noise levels [B], in data units.
            noise, noise_real: standard normal noise [B, ...] of either side.
        """
        losses = Losses()
        x_generated = x_generated.detach()
        x_sigma = add_noise(x_generated, noise, sigma)
        features: Tensor | None = None
        if self.fake_score is not None:
            if self.host is self.fake_score:
                x0_fake, features = self.fake_score(x_sigma, sigma, condition, outputs="both")
            else:
                x0_fake = self.fake_score(x_sigma, sigma, condition)
            denoising = denoising_loss(self.fake_score, x0_fake, x_generated, sigma)
            losses.terms["fake score"] = Term(denoising)
            losses.diagnostics["fake_score_loss"] = denoising
        if self.discriminator is not None and self.host is not None:
            if x_real is None or noise_real is None:
                raise ValueError("x_real and noise_real are missing: the discriminator compares with real samples")
            x_real_sigma = add_noise(x_real, noise_real, sigma)
            if features is not None:  # the fake score's, from the pass above
                features_real = self.host(x_real_sigma, sigma, condition, outputs="features")
                features = torch.cat([features_real, features])
            else:
                with torch.no_grad():
                    both = torch.cat([x_real_sigma, x_sigma]), torch.cat([sigma, sigma])
                    features = self.host(*both, concatenate_conditions(condition, condition), outputs="features")
            logit_real, logit_generated = self.discriminator(features).chunk(2)
            logistic = discriminator_loss(logit_real, logit_generated)
            losses.terms["discriminator"] = Term(logistic, self.discriminator_weight)
            losses.diagnostics |= {
                "discriminator_loss": logistic, "logit_real": logit_real, "logit_generated": logit_generated,
            }  # fmt: skip
        return losses

    def generator_losses(
        self, x_generated: Tensor, condition: Condition, sigma: Tensor, noise: Tensor,
        weight_scale: Tensor | None = None,
    ) -> Losses:  # fmt: skip
        """The objective and the adversarial term of samples that carry a graph, whatever made them.

        Every network is frozen: the gradient reaches the samples and what made them, a network or a renderer.

        Args:
            x_generated: samples [B, ...] in data units that require a gradient.
            condition: what the networks are conditioned on.
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
                features = fake_features if features is None else features
            logit = None if features is None or self.discriminator is None else self.discriminator(features)
            log_ratio = logit if logit is None or self.normalizer is None else self.normalizer(logit, sigma)
        predictions = Predictions(x_generated, x_sigma, sigma, x0_teacher, x0_fake, log_ratio, weight_scale)
        objective, diagnostics = self.objective(predictions)
        losses = Losses({"objective": Term(objective)}, diagnostics, None if logit is None else logit.detach())
        if logit is not None and self.gan_weight > 0:
            adversarial = generator_loss(logit)
            losses.terms["adversarial"] = Term(adversarial, self.gan_weight)
            losses.diagnostics["adversarial_loss"] = adversarial
        losses.diagnostics["loss"] = objective
        return losses

    @torch.no_grad()
    def log_ratio(self, x_generated: Tensor, condition: Condition, sigma: Tensor, noise: Tensor) -> Tensor:
        """The normalised log p/q [B] alone, without a graph; the arguments are those of :meth:`generator_losses`."""
        assert self.host is not None and self.discriminator is not None
        features = self.host(add_noise(x_generated, noise, sigma), sigma, condition, outputs="features")
        logit: Tensor = self.discriminator(features)
        return logit if self.normalizer is None else self.normalizer(logit, sigma)

    def _predict(
        self, network: nn.Module, x_sigma: Tensor, sigma: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor | None]:
        """The x0-prediction and, of the discriminator's host, the features; with a graph only where one is used."""
        through_scores = self.objective.differentiates_scores
        if network is not self.host:
            with torch.set_grad_enabled(through_scores):
                return network(x_sigma, sigma, condition), None
        with torch.set_grad_enabled(through_scores or self.gan_weight > 0):
            x0, features = network(x_sigma, sigma, condition, outputs="both", prediction_grad=through_scores)
        return x0, features

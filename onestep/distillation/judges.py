"""The generator's judges: what teacher, fake score and discriminator say at one noised batch, in one pass of each."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.models.base import DenoiserNetwork
from onestep.models.discriminator import Discriminator
from onestep.noise import add_noise
from onestep.objectives.base import Objective, Predictions
from onestep.objectives.density_ratio import RatioNormalizer
from onestep.toy.teacher import MixtureTeacher

Teacher = DenoiserNetwork | MixtureTeacher


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
class Judges:
    """The networks that an objective's inputs come from; None for those that the method does without."""

    teacher: Teacher
    fake_score: DenoiserNetwork | None
    discriminator: Discriminator | None
    normalizer: RatioNormalizer | None

    @property
    def discriminator_host(self) -> DenoiserNetwork | None:
        """The network whose features the discriminator reads."""
        if self.discriminator is None:
            return None
        host = self.fake_score if self.discriminator.features_from == "fake_score" else self.teacher
        assert isinstance(host, DenoiserNetwork)  # others have no features, and are refused when a run is built
        return host

    def evaluate(
        self,
        objective: Objective,
        x_generated: Tensor,
        noise: Tensor,
        sigma: Tensor,
        condition: Condition,
        adversarial: bool,
    ) -> tuple[Predictions, Tensor | None]:
        """The objective's inputs at ``x_generated + sigma * noise``, and the discriminator's raw logits [B].

        Graphs back to ``x_sigma`` are kept where someone differentiates them: through the predictions if the objective
        says so, through the features and the logits then or if ``adversarial``.
        """
        x_sigma = add_noise(x_generated, noise, sigma)
        through_scores = objective.differentiates_scores
        features: Tensor | None = None

        def predict(network: Teacher) -> Tensor:
            nonlocal features
            host = self.discriminator_host
            if network is not host or host is None:
                with torch.set_grad_enabled(through_scores):
                    return network(x_sigma, sigma, condition)
            with torch.set_grad_enabled(through_scores or adversarial):
                prediction, features = host(x_sigma, sigma, condition, outputs="both", prediction_grad=through_scores)
            return prediction

        with frozen(self.teacher, self.fake_score, self.discriminator):
            x0_teacher = predict(self.teacher)
            x0_fake = predict(self.fake_score) if self.fake_score is not None else None
            logit = log_ratio = None
            if self.discriminator is not None and features is not None:
                logit = log_ratio = self.discriminator(features)
                if self.normalizer is not None:
                    log_ratio = self.normalizer(logit, sigma)
        return Predictions(x_generated, x_sigma, sigma, x0_teacher, x0_fake, log_ratio), logit

    @torch.no_grad()
    def log_ratio(self, x_generated: Tensor, noise: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The ``log_ratio`` [B] of :meth:`evaluate` alone, without a graph."""
        host = self.discriminator_host
        assert host is not None and self.discriminator is not None
        features = host(add_noise(x_generated, noise, sigma), sigma, condition, outputs="features")
        logit: Tensor = self.discriminator(features)
        return logit if self.normalizer is None else self.normalizer(logit, sigma)

"""Settings of the generator and the critics of a distillation. Their values are in conf/training/."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from onestep.models.generator import Renoise, Start
from onestep.models.guidance import GuidanceRule
from onestep.objectives.denoising import ErrorWeight
from onestep.ranges import (
    AnyGuidance,
    Decay,
    Fraction,
    NonNegative,
    NonNegativeImages,
    NonNegativeInt,
    Positive,
    PositiveRate,
    Rate,
    Steps,
    Text,
    checked,
)


class Weights(NamedTuple):
    """The weights of the terms of the generator's loss."""

    objective: float
    gan: float


@checked
@dataclass(frozen=True)
class GeneratorSettings:
    """Settings of the generator.

    Args:
        sigma_init: noise level of the first step, in data units.
        later_sigmas: noise levels of further steps, descending; empty for a one-step generator.
        start: input of the first step, see :class:`onestep.models.generator.Generator`.
        renoise: noise between the steps, "stochastic" or "deterministic".
        labels: "uniform" draws the classes of generated samples; with "data" they are those of the data.
        objective_weight: weight of the objective in its loss.
        gan_weight: weight of the adversarial term in its loss; 0 for none.
        gan_weighting: factor of the adversarial term; "distance" is
            :func:`onestep.objectives.weighting.mean_inverse_distance` (SiDA, Uni-Instruct).
        gan_level: "own" gives the adversarial term a noise level and noise of its own (DMD2).
        regression_weight: weight of the regression on pairs of noise and teacher image; 0 for none.
        starts_at: images seen before its first update; the critics alone are trained until then.
        gan_starts_at: images seen before the adversarial term is added.
        objective_weight_before_gan: weight of the objective until then; None for ``objective_weight``.
        dropout: probability of its dropout in the pass that its update differentiates; 0 for none.
        frozen: patterns of the names of parameters that are not trained, see :func:`onestep.models.freezing.freeze`.

    Raises:
        ValueError: for a number out of its range.
    """

    sigma_init: Positive
    later_sigmas: Sequence[Positive]
    start: Start
    renoise: Renoise
    labels: Literal["data", "uniform"]
    objective_weight: Rate
    gan_weight: Rate
    gan_weighting: Literal["constant", "distance"]
    gan_level: Literal["shared", "own"]
    regression_weight: Rate
    starts_at: NonNegativeImages
    gan_starts_at: NonNegativeImages
    objective_weight_before_gan: Rate | None
    dropout: Decay
    frozen: Sequence[Text]

    def weights(self, images_seen: int) -> Weights | None:
        """The weights after ``images_seen`` images; None if the generator is not trained then."""
        if images_seen < self.starts_at:
            return None
        if images_seen >= self.gan_starts_at:
            return Weights(self.objective_weight, self.gan_weight)
        alone = self.objective_weight_before_gan
        return Weights(self.objective_weight if alone is None else alone, 0.0)


@checked
@dataclass(frozen=True)
class CriticSettings:
    """Settings of the fake score and the discriminator.

    Args:
        steps: updates of the critics per update of the generator.
        guidance: classifier-free guidance of the fake score in its training and use; 1 for none. (The teacher's is
            ``teacher.guidance``.) With 0 it is trained without its condition, and a negative one turns it away from the
            condition: Zero-CFG and Anti-CFG of few-step SiD (arXiv 2505.12674).
        guidance_rescale, guidance_interval: see :class:`onestep.models.guidance.GuidanceRule`.
        error_weight, error_sum: see :class:`onestep.distillation.method.Method`.
        discriminator_weight: weight of the discriminator's loss in the critics' loss; the fake score's is 1.
        discriminator_weighting: factor of the discriminator's loss; "fake_score" is the batch mean of the weight of the
            fake score's error (SiDA, Uni-Instruct).
        real_noise: noise of the real images: that of the generated ones ("same"), other noise of the same levels
            ("own_noise"), or of levels of their own ("own_level").
        generated_noise: noise of the generated images in the discriminator's loss: that of the fake score's loss
            ("shared"), or noise and levels of their own ("own_level").
        dropout: probability of the fake score's dropout in the critics' update; 0 for none.
        alignment: the part, 1 - lambda, by which each update of the generator moves the fake score's parameters to the
            generator's: SenseFlow's implicit distribution alignment (arXiv 2506.00523); 0 for none.
        step_aware: tell the fake score which step of the generator its samples are of, see
            :class:`onestep.models.steps.StepEmbedding`.

    Raises:
        ValueError: for a number out of its range.
    """

    steps: Steps
    guidance: AnyGuidance
    guidance_rescale: Fraction
    guidance_interval: tuple[NonNegative, NonNegative] | None
    error_weight: ErrorWeight
    error_sum: bool
    discriminator_weight: PositiveRate
    discriminator_weighting: Literal["constant", "fake_score"]
    real_noise: Literal["same", "own_noise", "own_level"]
    generated_noise: Literal["shared", "own_level"]
    dropout: Decay
    alignment: Decay
    step_aware: bool

    @property
    def guidance_rule(self) -> GuidanceRule:
        """The rule of the fake score's guidance."""
        return GuidanceRule(self.guidance_rescale, self.guidance_interval)


@checked
@dataclass(frozen=True)
class DiagnosisSettings:
    """Settings of :class:`onestep.distillation.diagnosis.Diagnosis`.

    Args:
        held_out: real images that the discriminator never sees, see :func:`onestep.data.dataset.hold_out`; 0 for none.
        samples: generated samples; 0 for no diagnosis.

    Raises:
        ValueError: for a negative number.
    """

    held_out: NonNegativeInt
    samples: NonNegativeInt

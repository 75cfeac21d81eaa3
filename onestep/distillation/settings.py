"""Settings of the generator and the critics of a distillation. Their values are in conf/training/."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from onestep.objectives.denoising import ErrorWeight
from onestep.ranges import Guidance, Images, Positive, PositiveRate, Rate, Steps, checked


@dataclass(frozen=True)
class EarlyPhase:
    """What differs in the generator's updates at the start of a training; None for the settings of the rest.

    Args:
        until_images: images seen at the end of the phase.
        trained: False for iterations without an update of the generator.
        objective_weight, gan_weight: see :class:`GeneratorSettings`.
    """

    until_images: Images
    trained: bool = True
    objective_weight: Rate | None = None
    gan_weight: Rate | None = None


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
        labels: "uniform" draws the classes of generated samples; with "data" they are those of the data.
        objective_weight: weight of the objective in its loss.
        gan_weight: weight of the adversarial term in its loss; 0 for none.
        gan_weighting: factor of the adversarial term; "distance" is
            :func:`onestep.objectives.weighting.mean_inverse_distance` (SiDA, Uni-Instruct).
        gan_level: "own" gives the adversarial term a noise level and noise of its own (DMD2).
        regression_weight: weight of the regression on pairs of noise and teacher image; 0 for none.
        early_phases: phases at the start of the training, ascending.

    Raises:
        ValueError: for a number out of its range.
    """

    sigma_init: Positive
    later_sigmas: Sequence[Positive]
    labels: Literal["data", "uniform"]
    objective_weight: Rate
    gan_weight: Rate
    gan_weighting: Literal["constant", "distance"]
    gan_level: Literal["shared", "own"]
    regression_weight: Rate
    early_phases: Sequence[EarlyPhase]

    def weights(self, images_seen: int) -> Weights | None:
        """The weights after ``images_seen`` images; None if the generator is not trained then."""
        phase = next((phase for phase in self.early_phases if images_seen < phase.until_images), None)
        if phase is None:
            return Weights(self.objective_weight, self.gan_weight)
        if not phase.trained:
            return None
        return Weights(
            self.objective_weight if phase.objective_weight is None else phase.objective_weight,
            self.gan_weight if phase.gan_weight is None else phase.gan_weight,
        )


@checked
@dataclass(frozen=True)
class CriticSettings:
    """Settings of the fake score and the discriminator.

    Args:
        steps: updates of the critics per update of the generator.
        guidance: classifier-free guidance of the fake score in its training and use; 1 for none. (The teacher's is
            ``teacher.guidance``.)
        error_weight, error_sum: see :func:`onestep.objectives.denoising.denoising_loss`.
        discriminator_weight: weight of the discriminator's loss in the critics' loss; the fake score's is 1.
        discriminator_weighting: factor of the discriminator's loss; "fake_score" is the batch mean of the weight of the
            fake score's error (SiDA, Uni-Instruct).
        real_noise: noise of the real images: that of the generated ones ("same"), other noise of the same levels
            ("own_noise"), or of levels of their own ("own_level").
        generated_noise: noise of the generated images in the discriminator's loss: that of the fake score's loss
            ("shared"), or noise and levels of their own ("own_level").

    Raises:
        ValueError: for a number out of its range.
    """

    steps: Steps
    guidance: Guidance
    error_weight: ErrorWeight
    error_sum: bool
    discriminator_weight: PositiveRate
    discriminator_weighting: Literal["constant", "fake_score"]
    real_noise: Literal["same", "own_noise", "own_level"]
    generated_noise: Literal["shared", "own_level"]

"""Settings of the generator and the critics of a distillation. Their values are in conf/training/."""

from collections.abc import Sequence
from dataclasses import dataclass

from onestep.ranges import Guidance, Positive, PositiveRate, Rate, Steps, checked


@checked
@dataclass(frozen=True)
class GeneratorSettings:
    """Settings of the generator.

    Args:
        sigma_init: noise level of the first step, in data units.
        later_sigmas: noise levels of further steps, descending; empty for a one-step generator.
        gan_weight: weight of the adversarial term in its loss; 0 for none.
        regression_weight: weight of the regression on pairs of noise and teacher image; 0 for none.

    Raises:
        ValueError: for a number out of its range.
    """

    sigma_init: Positive
    later_sigmas: Sequence[Positive]
    gan_weight: Rate
    regression_weight: Rate


@checked
@dataclass(frozen=True)
class CriticSettings:
    """Settings of the fake score and the discriminator.

    Args:
        steps: updates of the critics per update of the generator.
        fresh_latents: new samples in each of these updates, at the cost of a forward pass of the generator, instead of
            the samples of the generator's update.
        guidance: classifier-free guidance of the fake score in its training and use; 1 for none. (The teacher's is
            ``teacher.guidance``.)
        discriminator_weight: weight of the discriminator's loss in the critics' loss; the fake score's is 1.

    Raises:
        ValueError: for a number out of its range.
    """

    steps: Steps
    fresh_latents: bool
    guidance: Guidance
    discriminator_weight: PositiveRate

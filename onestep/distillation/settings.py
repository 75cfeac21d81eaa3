"""Settings of the generator and the critics of a distillation. Their values are in conf/training/."""

from collections.abc import Sequence
from dataclasses import dataclass


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

    sigma_init: float
    later_sigmas: Sequence[float]
    gan_weight: float
    regression_weight: float

    def __post_init__(self) -> None:
        if not isinstance(self.later_sigmas, list | tuple) or not all(
            isinstance(sigma, int | float) for sigma in self.later_sigmas
        ):
            raise ValueError(
                f"generator.later_sigmas={self.later_sigmas}: expected a list of noise levels such as [0.5,0.2], or []"
            )
        for name in ("gan_weight", "regression_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"generator.{name} must not be negative, got {getattr(self, name)}")


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

    steps: int
    fresh_latents: bool
    guidance: float
    discriminator_weight: float

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"fake_score.steps must be at least 1, got {self.steps}")
        if self.discriminator_weight <= 0:
            raise ValueError(f"discriminator.weight must be positive, got {self.discriminator_weight}")

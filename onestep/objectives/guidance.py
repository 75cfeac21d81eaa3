"""Classifier-free guidance as a term of its own, at noise levels of its own (Liu et al. 2025, arXiv 2511.22677)."""

from typing import Any

import torch
from torch import Tensor

from onestep.denoiser import concatenate_conditions
from onestep.models.base import DenoiserNetwork
from onestep.models.generator import Generator
from onestep.models.guidance import unguided
from onestep.noise import SigmaBelow, SigmaDistribution, expand_like
from onestep.objectives.base import Predictions, descend, score_difference
from onestep.objectives.terms import GeneratorTerm, TermInputs
from onestep.objectives.weighting import Weighting
from onestep.precision import without_bf16
from onestep.ranges import PositiveRate, checked


@checked
class GuidanceAugmentation(GeneratorTerm):
    """The gradient ``E[-(score_guided - score_conditional) dx/dtheta]`` of the teacher's scores (eq. 6 and 8).

    With plain guidance w the difference is ``(w - 1) (score_conditional - score_unconditional)``. The objective's
    teacher is without guidance, and at equal levels, noise and weights both gradients add up to that with a guided one.
    The levels are those below the input of the generator's trained step, as those above are settled (sec. 4.1; the
    paper's time runs from noise to data). A step that starts from noise has all.

    Args:
        weight: of the term, whose loss is a sum over a sample's dimensions, as the objective's.
        weighting: of noise levels, as the objective's, with the distance to the conditional prediction.
        sigma: distribution of its noise levels; None for the objective's.
        below_step: False for all levels in every step.
    """

    needs_ground_truth = False
    adds_guidance = True

    def __init__(
        self, weight: PositiveRate, weighting: Weighting, sigma: SigmaDistribution | None, below_step: bool
    ) -> None:
        self.weight, self.weighting, self.sigma, self.below_step = weight, weighting, sigma, below_step

    def levels_of_step(self, sigma: SigmaDistribution, progress: float, student: Any, step: int) -> SigmaDistribution:
        sigma = sigma if self.sigma is None else self.sigma.after(progress)
        return SigmaBelow(sigma, [student.sigma_init, *student.later_sigmas][step]) if self.below_step else sigma

    def losses(self, inputs: TermInputs) -> Tensor:
        """The losses [B] with the gradient by ``x_generated`` times the weighting."""
        assert inputs.noised is not None
        x, teacher, condition = inputs.x_generated, inputs.teacher, inputs.condition_generated
        sigma, x_sigma = inputs.noised.sigma, inputs.noised.add_to(x)
        both = concatenate_conditions(condition, teacher.without(condition))
        with torch.no_grad(), unguided(teacher), without_bf16(teacher, x.device):
            conditional, unconditional = teacher(torch.cat([x_sigma] * 2), torch.cat([sigma] * 2), both).chunk(2)
        guided = teacher.guidance_rule(conditional, unconditional, sigma, teacher.guidance)
        factor = self.weighting(Predictions(x, x_sigma, sigma, conditional), power=2)
        return descend(x, -expand_like(factor, x) * score_difference(guided, conditional, sigma))

    def check_student(self, student: Any, teacher: Any) -> None:
        if not isinstance(teacher, DenoiserNetwork) or teacher.network_evaluations == 1:
            raise ValueError(
                f"teacher.guidance={teacher.guidance}: this {type(teacher).__name__} makes no unconditional prediction "
                "to add guidance by: set a guidance other than 1 for a teacher of classes or prompts, or drop the term"
            )
        if not isinstance(student, Generator):
            raise ValueError(
                f"its noise levels depend on the step of a Generator, and the student is a {type(student).__name__}: "
                "leave the term out"
            )

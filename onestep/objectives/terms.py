"""Terms of the generator's loss beside the objective and the adversarial term: what they are called with."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.noise import Noised, SigmaDistribution
from onestep.objectives.base import Objective, Predictions


class TeacherPair(NamedTuple):
    """Noise [B, C, H, W] ~ N(0, I), its condition, and the teacher's samples [B, C, H, W] for both, in data units."""

    latents: Tensor
    condition: Condition
    x_teacher: Tensor


@dataclass(frozen=True)
class TermInputs:
    """What a term may read.

    Args:
        student: the trained module, see :class:`onestep.models.student.Student`.
        x_generated: its samples [B, C, H, W] with their graph, in data units.
        x_real: real samples [B, C, H, W], the ground truth of their conditions; None for data without samples.
        condition: that of ``x_real``.
        pair: noise and the teacher's samples; None without pairs.
        teacher: the frozen denoiser, with its guidance.
        condition_generated: that of ``x_generated``.
        noised: the levels of :meth:`GeneratorTerm.levels_of_step` and noise, for ``x_generated``; None for a term
            without levels.
    """

    student: Any
    x_generated: Tensor
    x_real: Tensor | None
    condition: Condition
    pair: TeacherPair | None
    teacher: Any
    condition_generated: Condition
    noised: Noised | None


class GeneratorTerm(ABC):
    """A term of the generator's loss.

    Attributes:
        weight: of the term, whose loss is a mean over a sample's dimensions unless it says otherwise.
        needs_ground_truth: True if real samples must be the ground truth of their conditions.
        needs_pairs: True for a term that reads pairs of noise and the teacher's sample.
        reads_pixels: True if samples must be pixels in [-1, 1], and no latents.
        adds_guidance: True for a term that adds the teacher's guidance, so that the objective's teacher has none.
    """

    weight: float
    needs_ground_truth = True
    needs_pairs = False
    reads_pixels = False
    adds_guidance = False

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The frozen networks that it reads, by the name of their setting within the term's."""
        return {}

    @abstractmethod
    def losses(self, inputs: TermInputs) -> Tensor:
        """The losses [B], without the weight."""

    def check(self, image_shape: tuple[int, int, int]) -> None:  # noqa: B027
        """Check that the term takes samples of ``image_shape``; by default all.

        Raises:
            ValueError: for others.
        """

    def levels_of_step(
        self, sigma: SigmaDistribution, progress: float, student: Any, step: int
    ) -> SigmaDistribution | None:
        """The noise levels at which it reads the samples of a step; by default None, for a term that adds no noise.

        Args:
            sigma: those of the objective at this time.
            progress: the part of the training that has passed.
            student: the trained module.
            step: its step that is trained, counted from 0.
        """
        return None

    def check_student(self, student: Any, teacher: Any) -> None:  # noqa: B027
        """Check that the term is defined for a student and its teacher; by default for all.

        Raises:
            ValueError: for others.
        """


class TermsAlone(Objective):
    """No losses of its own: terms, or the regression on pairs, are the whole loss, as in SinSR (arXiv 2311.14760).

    There are no scores, so no fake score is trained, and the teacher makes no predictions.
    """

    needs_teacher = False
    needs_fake_score = False
    has_losses = False

    def __call__(self, predictions: Predictions) -> tuple[None, dict[str, Tensor]]:
        """No losses and no diagnostics."""
        return None, {}

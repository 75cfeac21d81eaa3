"""Regularisers of a scene: what a teacher of its views does not say of the solid."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.models.scene.coloured import ColouredScene
from onestep.models.scene.generator import SceneGenerator
from onestep.models.scene.render import opacity
from onestep.models.scene.scene import Scene
from onestep.objectives.terms import GeneratorTerm, TermInputs
from onestep.ranges import PositiveRate, checked

_EPSILON = 1e-4  # of an opacity in a logarithm


class _OfScene(GeneratorTerm):
    """A term of a student that is a scene.

    Args:
        weight: of the term.

    Attributes:
        scenes: the classes of scenes that have what it reads.
    """

    needs_ground_truth = False
    scenes: tuple[type, ...] = (Scene, SceneGenerator)

    def __init__(self, weight: PositiveRate) -> None:
        self.weight = weight

    def check_student(self, student: Any, teacher: Any) -> None:
        if not isinstance(student, self.scenes):
            raise ValueError(
                f"it is a regulariser of a {' or '.join(kind.__name__ for kind in self.scenes)}, and the student is a "
                f"{type(student).__name__}: use another term, or leave it out"
            )


@checked
class Sparsity(_OfScene):
    """The mean of ``sqrt(opacity^2 + 0.01)`` over a render's pixels: less matter (DreamFusion, threestudio)."""

    def losses(self, inputs: TermInputs) -> Tensor:
        return (_opacity(inputs).square() + 0.01).sqrt().flatten(1).mean(1)


@checked
class Opacity(_OfScene):
    """The mean entropy of a render's opacities in nats: a ray is empty or opaque (threestudio's "opaque")."""

    def losses(self, inputs: TermInputs) -> Tensor:
        opacity = _opacity(inputs).clamp(_EPSILON, 1 - _EPSILON)
        return F.binary_cross_entropy(opacity, opacity, reduction="none").flatten(1).mean(1)


@checked
class TotalVariation(_OfScene):
    """The mean difference of the optical depths of neighbouring voxels, summed over the three axes.

    It is one number for all samples, of the grids that are trained.
    """

    scenes = (Scene, ColouredScene)

    def losses(self, inputs: TermInputs) -> Tensor:
        depths = F.softplus(inputs.student.logits)
        total = torch.stack([depths.diff(dim=axis).abs().mean() for axis in (1, 2, 3)]).sum()
        return total.expand(len(inputs.x_generated))


@checked
class Emptiness(_OfScene):
    """The mean of ``log(1 + 10 opacity)`` over all voxels: most of the space is empty.

    After SJC's term (arXiv 2212.00774), which has in place of a voxel's opacity the weight of a ray's sample, which is
    less behind other matter. It is one number for all samples.
    """

    scenes = (Scene, ColouredScene)

    def losses(self, inputs: TermInputs) -> Tensor:
        opacities = opacity(F.softplus(inputs.student.logits))
        return torch.log1p(10 * opacities).mean().expand(len(inputs.x_generated))


def _opacity(inputs: TermInputs) -> Tensor:
    """The opacities [B, C, H, W] of the renders."""
    return (inputs.x_generated.float() + 1) / 2

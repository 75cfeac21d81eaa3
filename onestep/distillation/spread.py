"""The spread of a generator's samples of one condition across seeds, and their appearance, against the teacher's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from onestep.denoiser import Condition
from onestep.distillation.appearance import appearance_of
from onestep.distillation.parts import Distillation
from onestep.evaluation.generate import Conditions, SampleFunction, SampleSpace, generate_all

_SAMPLES, _SEEDS = 128, 16  # all samples, and those of one condition at least
_OF_PICTURES = ("saturation", "contrast", "sharpness")
_NONE = 1e-6  # of values in units of images: rounding


@dataclass
class _First:
    """The first ``count`` of ``conditions``, without their prompts, as the samples are not evaluated."""

    conditions: Conditions
    count: int
    prompts: Sequence[str] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: Sequence[int]) -> Condition:
        return self.conditions[indices]


class Spread:
    """Measures a student's samples relative to the teacher's of the same seeds and conditions.

    The teacher's samples are drawn once.
    """

    def __init__(self, parts: Distillation) -> None:
        self.parts = parts
        space = replace(parts.space, decode=None)
        self.samples = min(_SAMPLES, parts.diagnosis.samples)
        conditions = max(1, self.samples // _SEEDS)
        self.count = 1
        if space.conditions is not None:
            self.count = min(conditions, len(space.conditions))
            space = replace(space, conditions=_First(space.conditions, self.count))
        elif space.label_dim:
            drawn = sorted({*(range(space.label_dim) if space.classes is None else space.classes)})
            chosen = drawn[:: -(-len(drawn) // conditions)]
            self.count, space = len(chosen), replace(space, classes=chosen)
        self.space = space
        self._of_teacher: dict[str, Tensor] | None = None

    def __call__(self) -> dict[str, float]:
        """The student's values over the teacher's: see :func:`spread_of`, and for pictures :func:`appearance_of`.

        A value of which the teacher's pictures have none, such as the saturation of grey ones, is left out.
        """
        parts = self.parts
        if self._of_teacher is None:
            self._of_teacher = self._measure(partial(parts.sampler, parts.method.teacher), self.space)
        found = self._measure(parts.drawing(parts.student), replace(self.space, noise_shape=parts.student.noise_shape))
        theirs = self._of_teacher
        return {
            name: float(ours / theirs[name])
            for name, ours in found.items()
            if name not in _OF_PICTURES or theirs[name] > _NONE
        }

    def _measure(self, sample: SampleFunction, space: SampleSpace) -> dict[str, Tensor]:
        accelerator, batch_size = self.parts.run.accelerator, self.parts.evaluation.batch_size
        samples = generate_all(sample, range(self.samples), batch_size, space, accelerator)
        found = dict(zip(("spread", "diversity"), spread_of(samples, self.count), strict=True))
        decode = self.parts.space.decode
        images = samples if decode is None else torch.cat([decode(part.cpu()) for part in samples.split(batch_size)])
        is_picture = images.ndim == 4 and images.shape[1] in (1, 3) and min(images.shape[2:]) >= 3
        return found | appearance_of(images.clamp(-1, 1)) if is_picture else found


def spread_of(samples: Tensor, conditions: int) -> tuple[Tensor, Tensor]:
    """The spread and the diversity of ``samples`` [N, ...], of which sample i is of the condition ``i % conditions``.

    The spread is the standard deviation of the samples of one condition, a root mean square over dimensions and
    conditions. The diversity is the mean distance from a sample to the nearest other one of its condition.
    """
    groups = [samples[number::conditions].double().flatten(1) for number in range(conditions)]
    variance = torch.stack([group.var(0).mean() for group in groups]).mean()
    nearest = [torch.cdist(group, group).fill_diagonal_(torch.inf).min(1).values for group in groups]
    return variance.sqrt(), torch.cat(nearest).mean()

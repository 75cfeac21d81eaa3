"""The spread of a generator's samples of one condition across seeds, against the teacher's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from onestep.denoiser import Condition
from onestep.distillation.parts import Distillation
from onestep.evaluation.generate import Conditions, SampleFunction, SampleSpace, generate_all

_SAMPLES, _SEEDS = 128, 16  # all samples, and those of one condition at least


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
    """Measures the spread of a student's samples relative to the teacher's of the same seeds and conditions.

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
        self._of_teacher: tuple[Tensor, Tensor] | None = None

    def __call__(self) -> dict[str, float]:
        """``spread`` and ``diversity`` of the student over those of the teacher, see :func:`spread_of`."""
        parts = self.parts
        if self._of_teacher is None:
            self._of_teacher = self._measure(partial(parts.sampler, parts.method.teacher), self.space)
        found = self._measure(parts.drawing(parts.student), replace(self.space, noise_shape=parts.student.noise_shape))
        values = [float(ours / theirs) for ours, theirs in zip(found, self._of_teacher, strict=True)]
        return dict(zip(("spread", "diversity"), values, strict=True))

    def _measure(self, sample: SampleFunction, space: SampleSpace) -> tuple[Tensor, Tensor]:
        accelerator, batch_size = self.parts.run.accelerator, self.parts.evaluation.batch_size
        return spread_of(generate_all(sample, range(self.samples), batch_size, space, accelerator), self.count)


def spread_of(samples: Tensor, conditions: int) -> tuple[Tensor, Tensor]:
    """The spread and the diversity of ``samples`` [N, ...], of which sample i is of the condition ``i % conditions``.

    The spread is the standard deviation of the samples of one condition, a root mean square over dimensions and
    conditions. The diversity is the mean distance from a sample to the nearest other one of its condition.
    """
    groups = [samples[number::conditions].double().flatten(1) for number in range(conditions)]
    variance = torch.stack([group.var(0).mean() for group in groups]).mean()
    nearest = [torch.cdist(group, group).fill_diagonal_(torch.inf).min(1).values for group in groups]
    return variance.sqrt(), torch.cat(nearest).mean()

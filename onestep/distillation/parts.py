"""The parts of a distillation, as :mod:`onestep.build` makes them of a configuration."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from onestep.data.dataset import NoData, TrainingDataset
from onestep.distillation.method import Method
from onestep.distillation.pairs import TeacherPairs
from onestep.distillation.settings import CriticSettings, GeneratorSettings
from onestep.engine.ema import EMA
from onestep.engine.optimizer import GuardedOptimizer
from onestep.engine.run import Run
from onestep.engine.settings import EvaluationSettings, TrainingSettings
from onestep.evaluation.generate import SampleSpace
from onestep.metrics.evaluator import Evaluator
from onestep.noise import SigmaDistribution
from onestep.samplers import Sampler


@dataclass
class Distillation:
    """Everything that the distillation loop works with.

    Args:
        run: processes, folder and records.
        settings, generator, critics: the numbers.
        method: the losses and the networks that they need.
        student: the module that is trained, see :class:`onestep.models.student.Student`.
        ema: its average.
        optimizers: "generator" and, where the method trains critics, "critics".
        sigma: the distribution of the noise levels of the generator's loss.
        fake_sigma: that of the critics' losses.
        data: the real samples, if there are some, and the conditions.
        space: in which samples are generated for evaluation.
        pairs: for the regression; None without it.
        sampler, evaluator, evaluation: how teacher and student are compared.
    """

    run: Run
    settings: TrainingSettings
    generator: GeneratorSettings
    critics: CriticSettings
    method: Method
    student: Any
    ema: EMA[Any]
    optimizers: dict[str, GuardedOptimizer]
    sigma: SigmaDistribution
    fake_sigma: SigmaDistribution
    data: TrainingDataset | NoData
    space: SampleSpace
    pairs: TeacherPairs | None
    sampler: Sampler
    evaluator: Evaluator
    evaluation: EvaluationSettings

    @property
    def trained_networks(self) -> dict[str, nn.Module]:
        """The modules that change during training, by name."""
        modules = {
            "generator": self.student,
            "fake_score": self.method.fake_score,
            "discriminator": self.method.discriminator,
            "normalizer": self.method.normalizer,
        }
        return {name: module for name, module in modules.items() if module is not None}

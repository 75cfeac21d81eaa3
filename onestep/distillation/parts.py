"""The parts of a distillation; :mod:`onestep.build` makes them from a configuration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onestep.data.augmentation import EDMAugmentation
from onestep.data.dataset import NoData, TrainingDataset
from onestep.denoiser import Condition, micro_batches
from onestep.distillation.method import Method
from onestep.distillation.pairs import TeacherPairs
from onestep.distillation.schedule import Update
from onestep.distillation.settings import CriticSettings, DiagnosisSettings, GeneratorSettings
from onestep.engine.averages import Averages
from onestep.engine.optimizer import GuardedOptimizer
from onestep.engine.run import Run
from onestep.engine.settings import EvaluationSettings, TrainingSettings
from onestep.evaluation.generate import SampleFunction, SampleSpace
from onestep.metrics.evaluator import Evaluator
from onestep.noise import Noised, SigmaDistribution
from onestep.objectives.terms import GeneratorTerm
from onestep.samplers import Sampler
from onestep.seeding import BatchRandom


@dataclass
class Distillation:
    """The parts of the distillation loop.

    Args:
        run: processes, folder and records.
        settings, generator, critics: settings of the training, the generator and the critics.
        updates: of each iteration, in order.
        method: the losses and their networks.
        student: the trained module, see :class:`onestep.models.student.Student`.
        averages: the student's moving averages.
        optimizers: "generator", and "critics" if the method trains critics.
        sigma: distribution of the noise levels of the generator's loss.
        fake_sigma: distribution of the noise levels of the critics' losses.
        data: the real samples, if there are any, and the conditions.
        augment: of generated and real images in the critics' updates; None for none.
        space: the space of the samples for evaluation.
        pairs: pairs for the regression and terms that read them; None without.
        terms: further terms of the generator's loss, by name.
        sampler: the teacher's sampler.
        evaluator, evaluation: metrics of teacher and student, and their settings.
        diagnosis: settings of the diagnosis.
        views: reports the views of the trained scene into a folder; None for another student.
    """

    run: Run
    settings: TrainingSettings
    generator: GeneratorSettings
    critics: CriticSettings
    updates: list[Update]
    method: Method
    student: Any
    averages: Averages[Any]
    optimizers: dict[str, GuardedOptimizer]
    sigma: SigmaDistribution
    fake_sigma: SigmaDistribution
    data: TrainingDataset | NoData
    augment: EDMAugmentation | None
    space: SampleSpace
    pairs: TeacherPairs | None
    terms: Mapping[str, GeneratorTerm]
    sampler: Sampler
    evaluator: Evaluator
    evaluation: EvaluationSettings
    diagnosis: DiagnosisSettings
    views: Callable[[Any, Path], Mapping[str, Any]] | None

    def split(self, *values: Any) -> list[tuple[Any, ...]]:
        """The micro-batches of ``values`` [B, ...], one tuple each."""
        return list(zip(*(micro_batches(value, self.settings.accumulation) for value in values), strict=True))

    def condition_of_samples(self, condition: Condition, random: BatchRandom) -> Condition:
        """The condition of generated samples, that of the data or of uniform classes."""
        if self.generator.labels == "uniform" and "labels" in condition:
            classes = getattr(self.student, "classes", None)
            return condition | {"labels": random.labels(condition["labels"].shape[1], classes)}
        return condition

    def noise_of_terms(
        self, random: BatchRandom, shape: Sequence[int], iteration: int, step: int
    ) -> list[dict[str, Noised]]:
        """New levels and noise for each term that reads noised samples of ``step``, by micro-batch and name."""
        batches: list[dict[str, Noised]] = [{} for _ in range(self.settings.accumulation)]
        for name, term in self.terms.items():
            levels = term.levels_of_step(self.sigma, iteration / self.settings.iterations, self.student, step)
            if levels is not None:
                noised = self.split(random.sigma(levels), random.normal(shape))
                for batch, of_batch in zip(batches, noised, strict=True):
                    batch[name] = Noised(*of_batch)
        return batches

    def simulate(self, noises: Sequence[Tensor], condition: Condition, keep_graph: bool) -> Tensor:
        """The student's samples after a step for each of ``noises``, as in training, with or without their graph."""
        with torch.set_grad_enabled(keep_graph), self.run.generator_autocast():
            samples: Tensor = self.student.simulate(noises, condition)
        return samples

    def drawing(self, student: Any) -> SampleFunction:
        """``student``, the trained one or an average, as a function that draws in the precision of the training."""

        def sample(*inputs: Any) -> Tensor:
            with self.run.generator_autocast():
                samples: Tensor = student(*inputs)
            return samples

        return sample

    @property
    def trained_networks(self) -> dict[str, nn.Module]:
        """The modules that training changes, by name."""
        modules = {
            "generator": self.student,
            "fake_score": self.method.fake_score,
            "discriminator": self.method.discriminator,
            "normalizer": self.method.normalizer,
        }
        # A discriminator can have no weights.
        return {name: module for name, module in modules.items() if module is not None and module.state_dict()}

    @property
    def saved_networks(self) -> dict[str, nn.Module]:
        """The trained networks and the averages, by the names of their files in a checkpoint."""
        averages = {f"generator_{name}": network for name, network in self.averages.networks.items()}
        return {**self.trained_networks, **averages}

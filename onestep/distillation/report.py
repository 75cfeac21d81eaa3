"""The report of a distillation: metrics and grids during training, and the final summary of teacher and student."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from onestep.distillation.diagnosis import PREFIX, Diagnosis
from onestep.distillation.parts import Distillation
from onestep.distillation.symptoms import symptoms_of
from onestep.engine.averages import folder_of
from onestep.engine.log import read_log
from onestep.engine.shard import full_state_dict
from onestep.engine.state import TrainingState
from onestep.evaluation.generate import SampleFunction
from onestep.evaluation.of_run import RunEvaluator, check_values
from onestep.metrics.result import Measurement
from onestep.reports.plots import save_curves, save_diagnosis, save_samples, save_side_by_side
from onestep.reports.tables import print_summary

_DIAGNOSTICS = (
    "loss", "score_gap", "fake_score_loss", "discriminator_loss", "adversarial_loss", "regression_loss",
    "gradient_penalty", "logit_real", "logit_generated", "log_ratio_mean", "log_ratio_std", "weight_max",
    "generator_gradient", "fake_score_gradient",
)  # fmt: skip


class DistillationReport:
    """Samples from the teacher and the averaged generators, and evaluates all in the same way.

    Every process must call its methods: the samples are divided among the processes.
    """

    def __init__(self, parts: Distillation) -> None:
        self.run, self.parts = parts.run, parts
        self.of_teacher, self.of_student = (
            RunEvaluator(self.run, parts.evaluator, parts.evaluation, replace(parts.space, noise_shape=shape))
            for shape in (parts.space.noise_shape, parts.student.noise_shape)
        )
        self.diagnosis = Diagnosis(parts)
        self._shown: set[str] = set()  # the symptoms of the last diagnosis
        self._named: set[str] = set()  # those of which a warning has been given since they appeared

    def interim(self, state: TrainingState) -> list[Measurement]:
        """After an iteration: if one is due, a diagnosis and an evaluation of the averaged generators.

        A diagnosis follows the last iteration too. The result is that of :meth:`RunEvaluator.interim`.
        """
        iteration, settings = state.iteration, self.parts.settings
        due = iteration % settings.evaluate_every == 0
        # Both before the first line is written: the whole is repeated if a signal interrupts it.
        values = self.diagnosis(iteration) if due or iteration == settings.iterations else {}
        measured = self.of_student.interim(iteration, self._evaluated()) if due else []
        if values and self.run.accelerator.is_main_process:
            self._record(iteration, values)
        return measured

    def _record(self, iteration: int, values: dict[str, float]) -> None:
        """Log the values of a diagnosis with their symptoms, and warn once of each that lasts.

        A training passes through some at its start: one lasts if two diagnoses in a row show it, or the last one.
        """
        symptoms = symptoms_of(values)
        last = iteration == self.parts.settings.iterations
        for name in symptoms.keys() - self._named if last else symptoms.keys() & self._shown - self._named:
            warnings.warn(f"after iteration {iteration}: {symptoms[name]}. See docs/diagnosis.md", stacklevel=2)
            self._named.add(name)
        self._shown = {*symptoms}
        self._named &= self._shown
        of_values = {f"{PREFIX}{name}": value for name, value in values.items()}
        self.run.log.write(iteration, of_values | ({"symptoms": [*symptoms]} if symptoms else {}))

    def _evaluated(self) -> dict[str, SampleFunction]:
        """The averaged generators that are evaluated, in the precision in which they were trained."""
        evaluated = self.parts.averages.evaluated(self.parts.student)
        return {name: self.parts.drawing(generator) for name, generator in evaluated.items()}

    def final(self, state: TrainingState) -> dict[str, Any]:
        """Save the generators, evaluate them and the teacher on the same seeds, and write the summary and the plots.

        The scene of a run has pictures and densities too, and ``views`` in the summary, see
        :mod:`onestep.evaluation.views`.

        Returns:
            ``teacher`` and ``student``, which is the first average, each with every metric, ``network_evaluations``,
            ``samples`` and ``samples_per_second`` (only ``network_evaluations`` for a teacher that is not evaluated);
            ``averages``, the same of the other averages by name; ``diagnosis``, the last one's values and ``symptoms``,
            if there was one; ``images_seen``, the number of ``skipped_steps`` among the iterations, and ``seconds`` of
            the training; ``results``, a record of each value. Empty outside the main process.

        Raises:
            ValueError: if a value could not be computed, with the reason; everything else is written then.
            StopRequestedError: after a signal, in all processes.
        """
        self.run.log.close()
        folder, parts = self.run.folder, self.parts
        weights = parts.averages.weights(parts.student)
        for name, generator in weights.items():
            with ExitStack() as gathered:
                for network in generator.networks:
                    gathered.enter_context(full_state_dict(network))
                if self.run.accelerator.is_main_process:
                    generator.save_pretrained(folder / folder_of(list(weights), name))

        teacher_nfe = parts.sampler.network_evaluations * parts.method.teacher.network_evaluations
        student_nfe = parts.student.network_evaluations
        sample_teacher = partial(parts.sampler, parts.method.teacher)
        teacher: dict[str, Any] = {"network_evaluations": teacher_nfe}
        records: dict[str, Any] = {}
        failures: dict[str, dict[str, str]] = {}
        if parts.evaluation.evaluate_teacher:
            teacher, records["teacher"], failures["teacher"] = self.of_teacher.final(
                "teacher", sample_teacher, teacher_nfe
            )
        evaluated = self._evaluated()
        first = next(iter(evaluated))
        sides = {}
        for name, generator in evaluated.items():
            side = "student" if name == first else name
            sides[side], records[side], failures[side] = self.of_student.final(side, generator, student_nfe)
        teacher_images = self._grid(self.of_teacher, sample_teacher)
        student_images = self._grid(self.of_student, evaluated[first])
        if not self.run.accelerator.is_main_process:
            return {}
        summary = {
            "teacher": teacher,
            "student": sides.pop("student"),
            "averages": sides,
            "images_seen": state.iteration * parts.settings.batch_size,
            "skipped_steps": state.skipped_steps,
            "seconds": round(state.seconds, 1),
            "results": records,
        }
        lines = read_log(folder / "log.jsonl")
        if diagnosis := last_diagnosis(lines):
            summary["diagnosis"] = diagnosis
        if parts.views is not None:
            summary["views"] = parts.views(parts.averages.evaluated(parts.student)[first], folder)
        self.run.finish(summary)
        for name, images in (("teacher", teacher_images), ("student", student_images)):
            save_samples(images, folder / "samples" / f"{name}.png")
        titles = (f"teacher, {count_evaluations(teacher_nfe)}", f"student, {count_evaluations(student_nfe)}")
        save_side_by_side(teacher_images, student_images, titles, folder / "side_by_side.png")
        metrics = parts.evaluator.descriptions
        of_others = {
            f"{key}/{name}": replace(description, title=f"{description.title} of {name}")
            for name in sides
            for key, description in metrics.items()
        }
        diagnostics = (*_DIAGNOSTICS, *(f"{name}_loss" for name in parts.terms))
        save_curves(lines, metrics | of_others, diagnostics, folder / "curves.png")
        save_diagnosis(lines, PREFIX, folder / "diagnosis.png")
        print_summary(summary, folder)
        check_values(failures, folder)
        return summary

    def _grid(self, evaluator: RunEvaluator, sample: SampleFunction) -> Tensor:
        """Images for a grid, one class per column if there are classes."""
        label_dim, classes = self.parts.data.label_dim, self.parts.space.classes
        columns = list(range(label_dim)) if classes is None else sorted({*classes})
        return evaluator.grid(sample, columns or None)


def last_diagnosis(lines: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The values of the last diagnosis in the ``lines`` of a log by name, and its ``symptoms``; None without one."""
    for line in reversed(lines):
        values = {name.removeprefix(PREFIX): value for name, value in line.items() if name.startswith(PREFIX)}
        if values:
            return {"symptoms": line.get("symptoms", []), **values}
    return None


def count_evaluations(count: int) -> str:
    """``"1 evaluation"``, ``"4 evaluations"``."""
    return f"{count} evaluation{'' if count == 1 else 's'}"

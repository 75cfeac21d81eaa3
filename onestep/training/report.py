"""What a distillation shows for itself: grids and figures on the way, the summary of teacher and student at the end."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from onestep.training.build import Distillation
from onestep.training.draw import Draw
from onestep.training.log import read_log
from onestep.training.pictures import save_curves, save_samples, save_side_by_side
from onestep.training.run import Run
from onestep.training.shard import whole_state_dict
from onestep.training.state import TrainingState

_CURVES = (
    "fid", "recall", "modes", "mode_precision", "kl", "energy",
    "loss", "score_gap", "fake_score_loss", "discriminator_loss", "adversarial_loss", "regression_loss",
    "logit_real", "logit_generated", "log_ratio_mean", "log_ratio_std", "weight_max",
    "generator_gradient", "fake_score_gradient",
)  # fmt: skip


class DistillationReport:
    """Draws from the teacher and from the averaged generator, and scores both in the same way.

    Every process must call its methods, as they share the drawing.
    """

    def __init__(self, run: Run, parts: Distillation) -> None:
        self.run, self.parts = run, parts
        self.records: dict[str, list[dict[str, Any]]] = {}

    def interim(self, state: TrainingState) -> dict[str, float]:
        """Score the averaged generator, write the figures to the log and a grid into ``samples/``.

        Returns the figures in the main process.
        """
        settings, average = self.parts.evaluation, self.parts.ema.average
        figures: dict[str, float] = self.parts.evaluator(self._share(average, settings.interim_samples), shared=True)
        shown = self._shown(average)
        if self.run.accelerator.is_main_process:
            self.run.log.write(state.cycle, figures)
            save_samples(shown, self.run.folder / "samples" / f"cycle_{state.cycle:08d}.png")
        return figures

    def final(self, state: TrainingState) -> dict[str, Any]:
        """Save the generator, score it and the teacher on the same seeds, and write the summary and the pictures.

        Returns:
            ``teacher`` and ``student``, each with every metric, ``network_evaluations``, ``samples`` and
            ``samples_per_second``; ``images_seen`` and ``seconds`` of the training; ``figures``, a record of each;
            empty outside the main process.
        """
        self.run.log.close()
        folder, parts, average = self.run.folder, self.parts, self.parts.ema.average
        for generator, name in ((average, "generator"), (parts.generator, "generator_raw")):
            with whole_state_dict(generator.denoiser):
                if self.run.accelerator.is_main_process:
                    generator.save_pretrained(folder / name)

        of_teacher = parts.sampler.network_evaluations * parts.judges.teacher.network_evaluations
        of_student = average.network_evaluations
        teacher, teacher_images = self._score("teacher", partial(parts.sampler, parts.judges.teacher), of_teacher)
        student, student_images = self._score("student", average, of_student)
        if not self.run.accelerator.is_main_process:
            return {}
        summary = {
            "teacher": teacher,
            "student": student,
            "images_seen": state.cycle * parts.settings.batch_size,
            "seconds": round(state.seconds, 1),
            "figures": self.records,
        }
        self.run.write_json("summary.json", summary)
        titles = (f"teacher, {count_evaluations(of_teacher)}", f"student, {count_evaluations(of_student)}")
        save_side_by_side(teacher_images, student_images, titles, folder / "side_by_side.png")
        save_curves(read_log(folder / "log.jsonl"), _CURVES, folder / "curves.png")
        print_summary(summary, folder)
        self.run.finish()
        return summary

    def _score(self, name: str, draw: Draw, network_evaluations: int) -> tuple[dict[str, float], Tensor]:
        """The figures of one side, and its first images, one class a column where there are classes."""
        samples, evaluator = self.parts.evaluation.samples, self.parts.evaluator
        title = f"drawing from the {name}" if self.run.accelerator.is_main_process else None
        clock = Clock(self._share(draw, samples, progress=title))
        figures: dict[str, float] = evaluator(clock, shared=True)
        label_dim = self.parts.data.label_dim
        shown = self._shown(draw, classes=list(range(label_dim)) if label_dim else None)
        self.records[name] = evaluator.figures(figures, samples, [0, samples - 1], network_evaluations)
        figures |= {
            "network_evaluations": network_evaluations,
            "samples": samples,
            "samples_per_second": round(samples / clock.seconds, 1),
        }
        return figures, shown

    def _share(self, draw: Draw, count: int, **options: Any) -> Iterator[Tensor]:
        """This process's share of the samples, batch by batch."""
        return self.run.draw_share(draw, count, self.parts.evaluation.batch_size, self.parts.data, **options)

    def _shown(self, draw: Draw, **options: Any) -> Tensor:
        """The samples of a picture."""
        settings = self.parts.evaluation
        return self.run.draw(draw, settings.grid, settings.batch_size, self.parts.data, **options)


class Clock:
    """Hands on what ``items`` give, and counts the ``seconds`` that they took, without what is done with them."""

    def __init__(self, items: Iterator[Tensor]) -> None:
        self.items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator[Tensor]:
        started = time.monotonic()
        for item in self.items:
            self.seconds += time.monotonic() - started
            yield item
            started = time.monotonic()


def count_evaluations(count: int) -> str:
    """``"1 evaluation"``, ``"4 evaluations"``."""
    return f"{count} evaluation{'' if count == 1 else 's'}"


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Show the summary as a table."""
    table = Table(title=f"{summary['images_seen']:,} images in {summary['seconds']:.0f} s of training")
    rows = {name: summary[name] for name in ("teacher", "student")}
    table.add_column("")
    for key in rows["teacher"]:
        table.add_column(key.replace("_", " "), justify="right")
    for name, figures in rows.items():
        table.add_row(
            name, *(f"{value:,}" if isinstance(value, int) else f"{value:,.3f}" for value in figures.values())
        )
    console = Console()
    console.print(table)
    console.print(f"everything of this run: {folder}")

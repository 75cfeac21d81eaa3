"""What a distillation shows for itself: grids and figures on the way, the summary of teacher and student at the end."""

from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from onestep.distillation.build import Distillation
from onestep.engine.log import read_log
from onestep.engine.run import Run
from onestep.engine.shard import full_state_dict
from onestep.engine.state import TrainingState
from onestep.evaluation.evaluate import Scorer
from onestep.evaluation.generate import Draw
from onestep.reports.plots import save_curves, save_samples, save_side_by_side

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
        self.scorer = Scorer(run, parts.evaluator, parts.evaluation, parts.space)

    def interim(self, state: TrainingState) -> dict[str, float]:
        """Score the averaged generator, write the figures to the log and a grid into ``samples/``.

        Returns the figures in the main process.
        """
        figures, shown = self.scorer.interim(self.parts.ema.average)
        if self.run.accelerator.is_main_process:
            self.run.log.write(state.iteration, figures)
            save_samples(shown, self.run.folder / "samples" / f"iteration_{state.iteration:08d}.png")
        return figures

    def final(self, state: TrainingState) -> dict[str, Any]:
        """Save the generator, score it and the teacher on the same seeds, and write the summary and the pictures.

        Returns:
            ``teacher`` and ``student``, each with every metric, ``network_evaluations``, ``samples`` and
            ``samples_per_second`` (of a teacher that is not scored the evaluations alone); ``images_seen`` and
            ``seconds`` of the training; ``figures``, a record of each; empty outside the main process.
        """
        self.run.log.close()
        folder, parts, average = self.run.folder, self.parts, self.parts.ema.average
        for generator, name in ((average, "generator"), (parts.generator, "generator_raw")):
            with full_state_dict(generator.denoiser):
                if self.run.accelerator.is_main_process:
                    generator.save_pretrained(folder / name)

        of_teacher = parts.sampler.network_evaluations * parts.judges.teacher.network_evaluations
        of_student = average.network_evaluations
        draw_teacher = partial(parts.sampler, parts.judges.teacher)
        teacher: dict[str, Any] = {"network_evaluations": of_teacher}
        records = {}
        if parts.evaluation.evaluate_teacher:
            teacher, records["teacher"] = self.scorer.final("teacher", draw_teacher, of_teacher)
        student, records["student"] = self.scorer.final("student", average, of_student)
        teacher_images, student_images = self._shown(draw_teacher), self._shown(average)
        if not self.run.accelerator.is_main_process:
            return {}
        summary = {
            "teacher": teacher,
            "student": student,
            "images_seen": state.iteration * parts.settings.batch_size,
            "seconds": round(state.seconds, 1),
            "figures": records,
        }
        self.run.write_json("summary.json", summary)
        titles = (f"teacher, {count_evaluations(of_teacher)}", f"student, {count_evaluations(of_student)}")
        save_side_by_side(teacher_images, student_images, titles, folder / "side_by_side.png")
        save_curves(read_log(folder / "log.jsonl"), _CURVES, folder / "curves.png")
        print_summary(summary, folder)
        self.run.finish()
        return summary

    def _shown(self, draw: Draw) -> Tensor:
        """Images for a picture, one class a column where there are classes."""
        label_dim = self.parts.data.label_dim
        return self.scorer.draw(draw, self.parts.evaluation.grid, classes=list(range(label_dim)) if label_dim else None)


def count_evaluations(count: int) -> str:
    """``"1 evaluation"``, ``"4 evaluations"``."""
    return f"{count} evaluation{'' if count == 1 else 's'}"


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Show the summary as a table."""
    table = Table(title=f"{summary['images_seen']:,} images in {summary['seconds']:.0f} s of training")
    rows = {name: summary[name] for name in ("teacher", "student") if "samples" in summary[name]}
    table.add_column("")
    for key in rows["student"]:
        table.add_column(key.replace("_", " "), justify="right")
    for name, figures in rows.items():
        table.add_row(
            name, *(f"{value:,}" if isinstance(value, int) else f"{value:,.3f}" for value in figures.values())
        )
    console = Console()
    console.print(table)
    console.print(f"everything of this run: {folder}")

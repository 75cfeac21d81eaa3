"""The settings of a run, of its training and of its evaluation; their values live in conf/."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunSettings:
    """Where and how a run computes.

    Args:
        output: its folder.
        seed: of all its randomness.
        device: "auto" for the accelerator if there is one, or "cpu".
        precision: "no" (float32), "bf16" or "fp16".
        num_workers: processes that read images, in each process that trains; 0 reads in the training process.
        process_timeout: seconds after which a process that waits for another one gives up.
        trackers: accelerate's, such as "tensorboard".
        resume: "auto", a run's folder or a checkpoint's folder; None for a fresh start.
        record: the configuration in YAML, which the run's folder keeps.

    Raises:
        ValueError: for a negative number of workers.
    """

    output: Path
    seed: int
    device: str
    precision: str
    num_workers: int
    process_timeout: float
    trackers: Sequence[str]
    resume: str | None
    record: str

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers}: expected 0 (read in the main process) or more")


@dataclass(frozen=True)
class TrainingSettings:
    """The numbers of every training.

    Args:
        total_images: images that the trained network sees in all.
        batch_size: images of an iteration over all processes.
        accumulation: micro-batches into which each process splits its part of a batch: less memory, the same result.
        warmup_images: images over which the learning rates rise linearly from 0.
        final_lr: the learning rate at the end of a cosine decay, as a fraction of the initial one; 1 keeps it constant.
        grad_clip: gradients are scaled down to this norm.
        ema_halflife, ema_rampup: see :class:`onestep.engine.ema.EMA`.
        log_every, checkpoint_every, evaluate_every: iterations between log lines, checkpoints, grids with figures.
        keep_last: newest checkpoints kept, beside the best one by evaluation.best.
        max_skipped_steps: consecutive iterations with a skipped, non-finite step after which the run stops.
        rollbacks: how often the run may roll back to its last checkpoint then, instead.
        rollback_lr_factor: factor of the learning rates at each rollback.

    Raises:
        ValueError: for a number out of its range.
    """

    total_images: int
    batch_size: int
    accumulation: int
    warmup_images: int
    final_lr: float
    grad_clip: float
    ema_halflife: float
    ema_rampup: float
    log_every: int
    checkpoint_every: int
    evaluate_every: int
    keep_last: int
    max_skipped_steps: int
    rollbacks: int
    rollback_lr_factor: float

    def __post_init__(self) -> None:
        for name in (
            "total_images", "batch_size", "accumulation", "grad_clip", "log_every", "checkpoint_every",
            "evaluate_every", "keep_last", "max_skipped_steps",
        ):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ValueError(f"training.{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.final_lr <= 1:
            raise ValueError(f"training.final_lr must lie in (0, 1], got {self.final_lr}")
        if self.rollbacks < 0:
            raise ValueError(f"training.rollbacks must not be negative, got {self.rollbacks}")
        if not 0 < self.rollback_lr_factor <= 1:
            raise ValueError(f"training.rollback_lr_factor must lie in (0, 1], got {self.rollback_lr_factor}")
        if self.total_images < self.batch_size:
            raise ValueError(f"training.total_images={self.total_images} is less than one batch of {self.batch_size}")

    @property
    def iterations(self) -> int:
        """Steps of the trained network."""
        return self.total_images // self.batch_size

    def per_process(self, processes: int) -> int:
        """Images of an iteration in each process.

        Raises:
            ValueError: if processes and micro-batches do not divide the batch.
        """
        parts = processes * self.accumulation
        if self.batch_size % parts:
            micro = "" if self.accumulation == 1 else f" and {self.accumulation} micro-batches (training.accumulation)"
            raise ValueError(
                f"training.batch_size={self.batch_size} cannot be divided among {processes} processes{micro}: choose "
                f"a multiple, such as {-(-self.batch_size // parts) * parts}"
            )
        return self.batch_size // processes


@dataclass(frozen=True)
class EvaluationSettings:
    """How a run draws the samples that it evaluates and shows; the latents and classes are those of seeds 0, 1, ...

    Args:
        samples: samples of the final values, teacher's and student's alike.
        seed_ranges: disjoint ranges of so many seeds that are evaluated in the end, to show a value's spread; the
            first, which starts at seed 0, gives the value itself.
        interim_samples: samples of the values during the run.
        interim_metrics: the metrics of those, and of the seed ranges behind the first; None for all.
        best: the key of the value that picks the best checkpoint and the teacher that a pretraining keeps, such as
            fid; None for the first that is measured during the run.
        evaluate_teacher: whether a distillation evaluates its teacher too; False where that is known.
        batch_size: samples drawn at a time.
        grid: samples in a picture.
    """

    samples: int
    seed_ranges: int
    interim_samples: int
    interim_metrics: list[str] | None
    best: str | None
    evaluate_teacher: bool
    batch_size: int
    grid: int

    def __post_init__(self) -> None:
        for name in ("samples", "seed_ranges", "interim_samples", "batch_size", "grid"):
            if getattr(self, name) <= 0:
                raise ValueError(f"evaluation.{name} must be positive, got {getattr(self, name)}")

    def check_processes(self, processes: int) -> None:
        """Refuse fewer samples than ``processes``, each of which is to bring features of some.

        Raises:
            ValueError: naming both.
        """
        for name in ("samples", "interim_samples"):
            if getattr(self, name) < processes:
                raise ValueError(
                    f"evaluation.{name}={getattr(self, name)}: {processes} processes have not one sample each"
                )

"""Settings of a run, of its training and of its evaluation. Their values are in conf/."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import BeforeValidator

from onestep.precision import DistillationPrecision, choose_device
from onestep.ranges import (
    BatchSize,
    Count,
    Images,
    NonNegativeImages,
    NonNegativeInt,
    PathText,
    PositiveFraction,
    Samples,
    Seed,
    Steps,
    Text,
    checked,
)


def _as_list(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


#: The modes of torch.compile.
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
#: "auto" is the accelerator if there is one. A name other than cpu is that of the accelerator that must be there.
Device = Annotated[Literal["auto", "cpu", "cuda", "mps", "xpu"], choose_device]
#: Names of accelerate's trackers: a list, a single name, or null for none.
Trackers = Annotated[list[Text], BeforeValidator(_as_list)]
#: Processes that read data.
Workers = Annotated[int, Ge(0), Le(1024)]
#: Seconds, up to four months.
Timeout = Annotated[float, Gt(0), Le(10**7)]


@checked
@dataclass(frozen=True)
class RunSettings:
    """Folder, device and processes of a run.

    Args:
        output: the run's folder.
        seed: seed of all randomness.
        device: "auto" for the accelerator if there is one, "cpu", or the accelerator's name.
        precision: "no" (float32), "bf16", "fp16" or "bf16_critics".
        num_workers: data loading processes per training process; 0 reads in the training process.
        process_timeout: timeout of collective operations, in seconds.
        trackers: accelerate's trackers, such as "tensorboard".
        resume: "auto", a run's folder or a checkpoint's folder; None for a fresh start.
        record: the configuration in YAML, written to the run's folder.
        course: the settings that a checkpoint must have in common with the run, by their full keys.

    Raises:
        ValueError: for a negative number of workers.
    """

    output: Path
    seed: Seed
    device: Device
    precision: DistillationPrecision
    num_workers: Workers
    process_timeout: Timeout
    trackers: Trackers
    resume: PathText | None
    record: str
    course: dict[str, Any]


@checked
@dataclass(frozen=True)
class TrainingSettings:
    """Settings of every training.

    Args:
        total_images: training length in images.
        batch_size: images per iteration over all processes.
        accumulation: micro-batches per process and iteration: less memory, the same result.
        warmup_images: images over which the learning rates rise linearly from 0.
        final_lr: the learning rate at the end of a cosine decay, as a fraction of the initial one; 1 keeps it constant.
        normalize_weights: keep the weights of magnitude-preserving layers at magnitude 1 (EDM2); others have none.
        log_every, checkpoint_every, evaluate_every: iterations between log lines, checkpoints, and evaluations with a
            grid of samples.
        keep_last: number of newest checkpoints kept, in addition to the best one by evaluation.best of each average.
        max_skipped_steps: iterations with a skipped, non-finite step after which the run stops or rolls back; each
            iteration without one takes half off the count.
        rollbacks: largest number of rollbacks to the last checkpoint.
        rollback_lr_factor: factor of the learning rates at each rollback.

    Raises:
        ValueError: for a number out of its range.
    """

    total_images: Images
    batch_size: BatchSize
    accumulation: BatchSize
    warmup_images: NonNegativeImages
    final_lr: PositiveFraction
    normalize_weights: bool
    log_every: Count
    checkpoint_every: Count
    evaluate_every: Count
    keep_last: Count
    max_skipped_steps: Count
    rollbacks: NonNegativeInt
    rollback_lr_factor: PositiveFraction

    def __post_init__(self) -> None:
        if self.total_images < self.batch_size:
            raise ValueError(
                f"training.total_images={self.total_images} is less than one batch: expected at least "
                f"training.batch_size={self.batch_size}"
            )

    @property
    def iterations(self) -> int:
        """Number of iterations, each one step of the trained network."""
        return self.total_images // self.batch_size

    def per_process(self, processes: int) -> int:
        """Images per iteration and process.

        Raises:
            ValueError: if the batch is not divisible by processes times micro-batches.
        """
        parts = processes * self.accumulation
        if self.batch_size % parts:
            micro = "" if self.accumulation == 1 else f" and {self.accumulation} micro-batches (training.accumulation)"
            raise ValueError(
                f"training.batch_size={self.batch_size} cannot be divided among {processes} processes{micro}: choose "
                f"a multiple, such as {-(-self.batch_size // parts) * parts}"
            )
        return self.batch_size // processes


@checked
@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of a run's evaluations. Latents and classes are those of the seeds 0, 1, ...

    Args:
        samples: number of samples for the final values, of teacher and student.
        seed_ranges: number of disjoint seed ranges of the final evaluation, to measure a value's spread. The first one
            starts at seed 0 and gives the reported value.
        interim_samples: number of samples for values during the run.
        interim_metrics: metrics during the run and of the further seed ranges; None for all.
        interim_averages: names of the averages that are evaluated during the run; None for all.
        best: the key of the value that picks the best checkpoint, and a pretraining's best teacher, such as fid; None
            for the first interim value.
        evaluate_teacher: evaluate a distillation's teacher too.
        batch_size: samples per batch.
        grid: samples in a plot of images; of data of pairs, about as many images with what they restore.
    """

    samples: Samples
    seed_ranges: Steps
    interim_samples: Samples
    interim_metrics: list[Text] | None
    interim_averages: list[Text] | None
    best: Text | None
    evaluate_teacher: bool
    batch_size: BatchSize
    grid: BatchSize

    def check_processes(self, processes: int) -> None:
        """Check that each of ``processes`` gets at least one sample.

        Raises:
            ValueError: if evaluation.samples or evaluation.interim_samples is less than ``processes``.
        """
        for name in ("samples", "interim_samples"):
            if getattr(self, name) < processes:
                raise ValueError(
                    f"evaluation.{name}={getattr(self, name)}: expected at least one sample for each of {processes} "
                    "processes"
                )

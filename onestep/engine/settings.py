"""The numbers of a training run; their values live in conf/training/."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSettings:
    """What every training run is told.

    Args:
        total_images: images the trained network sees in all.
        batch_size: images a step over all processes.
        accumulation: rounds in which each process works off its share of a step: less memory, the same result.
        warmup_images: images over which the learning rates rise linearly from 0.
        final_lr: share of the learning rate that is left at the end of a cosine decay; 1 keeps it constant.
        grad_clip: gradients are scaled down to this norm.
        ema_halflife, ema_rampup: see :class:`onestep.engine.ema.EMA`.
        log_every, checkpoint_every, evaluate_every: iterations between log lines, checkpoints, grids with figures.
        keep_last: newest checkpoints kept, beside the best one by evaluation.best.
        max_skipped_steps: iterations in a row with a refused step, which was not finite, after which the run stops.
        rollbacks: how often the run may go back to its last checkpoint then, instead.
        rollback_lr_factor: what the learning rates are multiplied by each time.

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
            raise ValueError(f"training.final_lr is a share in (0, 1], got {self.final_lr}")
        if self.rollbacks < 0:
            raise ValueError(f"training.rollbacks must not be negative, got {self.rollbacks}")
        if not 0 < self.rollback_lr_factor <= 1:
            raise ValueError(f"training.rollback_lr_factor is a share in (0, 1], got {self.rollback_lr_factor}")
        if self.total_images < self.batch_size:
            raise ValueError(f"training.total_images={self.total_images} is less than one batch of {self.batch_size}")

    @property
    def iterations(self) -> int:
        """Steps of the trained network."""
        return self.total_images // self.batch_size

    def share_of(self, processes: int) -> int:
        """Images a step in each process.

        Raises:
            ValueError: if the processes and their rounds do not divide the batch.
        """
        parts = processes * self.accumulation
        if self.batch_size % parts:
            rounds = "" if self.accumulation == 1 else f" and {self.accumulation} rounds (training.accumulation)"
            raise ValueError(
                f"training.batch_size={self.batch_size} cannot be divided among {processes} processes{rounds}: choose "
                f"a multiple, such as {-(-self.batch_size // parts) * parts}"
            )
        return self.batch_size // processes


@dataclass(frozen=True)
class DistillationSettings(TrainingSettings):
    """What a distillation is told besides.

    Args:
        sigma_init: the noise level at which the generator evaluates its network first, in data units.
        later_sigmas: those of its further steps, descending; empty for a one-step generator.
        fake_score_steps: updates of the fake score and the discriminator per update of the generator.
        fresh_latents: whether each of those is given images of its own, for a forward pass of the generator, instead of
            those that the generator's own update is about.
        gan_weight: weight of the adversarial term in the generator's loss; 0 for none.
        regression_weight: weight of the regression on pairs of noise and teacher image beside it; 0 for none.
        discriminator_weight: weight of the discriminator's loss beside the fake score's.
        fake_score_guidance: the classifier-free guidance under which the fake score is trained and evaluated; 1 for
            none. (The teacher's is ``teacher.guidance``.)
    """

    sigma_init: float
    later_sigmas: list[float]
    fake_score_steps: int
    fresh_latents: bool
    gan_weight: float
    regression_weight: float
    discriminator_weight: float
    fake_score_guidance: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.later_sigmas, list) or not all(isinstance(s, int | float) for s in self.later_sigmas):
            raise ValueError(
                f"training.later_sigmas={self.later_sigmas}: expected a list of noise levels such as [0.5,0.2], or []"
            )
        if self.fake_score_steps < 1:
            raise ValueError(f"training.fake_score_steps must be at least 1, got {self.fake_score_steps}")
        if self.gan_weight < 0 or self.discriminator_weight <= 0:
            raise ValueError(
                "training.gan_weight must not be negative and training.discriminator_weight must be positive, got "
                f"{self.gan_weight} and {self.discriminator_weight}"
            )
        if self.regression_weight < 0:
            raise ValueError(f"training.regression_weight must not be negative, got {self.regression_weight}")


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

"""The settings of each command outside of its parts, with their types. Parts have those of their parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import MinLen

from onestep.distillation.schedule import ScheduleName
from onestep.engine.settings import CompileMode, Device, Timeout, Trackers, Workers
from onestep.evaluation.writing import Format
from onestep.models.generator import Renoise, Start
from onestep.objectives.denoising import ErrorWeight
from onestep.precision import DistillationPrecision, Precision
from onestep.pretraining.settings import ClassifierSettings, InvertibleSettings
from onestep.ranges import (
    AnyGuidance,
    BatchSize,
    Decay,
    Fraction,
    NonNegative,
    NonNegativeImages,
    NonNegativeInt,
    Part,
    PathText,
    Positive,
    PositiveRate,
    Rate,
    Samples,
    Seed,
    Side,
    Steps,
    Text,
    UpscaleFactor,
)
from onestep.upscaling.colour import ColourFix
from onestep.upscaling.photograph import FileFormat


@dataclass
class _Settings:
    """Settings of every command."""

    mixture: Part | None
    degradation: Part | None
    data: Part | None
    metrics: dict[str, Part]
    reference: PathText | None
    features_cache: PathText | None
    seed: Seed
    device: Device
    precision: Precision
    tf32: bool


@dataclass
class _Run(_Settings):
    """Settings of the commands train and pretrain."""

    shard: bool
    compile: bool | CompileMode
    channels_last: bool
    gradient_checkpointing: bool
    process_timeout: Timeout
    num_workers: Workers
    trackers: Trackers
    resume: PathText | None
    output: PathText


@dataclass
class _Generator:
    network: Part | None
    init: PathText | None
    sigma_init: Positive | None
    later_sigmas: Sequence[Positive]
    start: Start
    renoise: Renoise
    labels: Literal["data", "uniform"]
    objective_weight: Rate
    gan_weight: Rate
    gan_weighting: Literal["constant", "distance"]
    gan_level: Literal["shared", "own"]
    regression_weight: Rate
    starts_at: NonNegativeImages
    gan_starts_at: NonNegativeImages
    objective_weight_before_gan: Rate | None
    dropout: Decay
    frozen: Sequence[Text]


@dataclass
class _FakeScore:
    network: Part | None
    init: PathText | None
    steps: Steps
    guidance: AnyGuidance
    guidance_rescale: Fraction
    guidance_interval: tuple[NonNegative, NonNegative] | None
    error_weight: ErrorWeight
    error_sum: bool
    dropout: Decay
    alignment: Decay
    step_aware: bool


@dataclass
class _Discriminator:
    head: Part | None
    network: Part | None
    spectral_norm: bool
    noise_level: NonNegative | None
    weight: PositiveRate
    weighting: Literal["constant", "fake_score"]
    real_noise: Literal["same", "own_noise", "own_level"]
    generated_noise: Literal["shared", "own_level"]


@dataclass
class _Clip:
    generator: Part | None
    critics: Part | None


@dataclass
class _PretrainClip:
    network: Part | None


@dataclass
class _Diagnosis:
    held_out: NonNegativeInt
    samples: NonNegativeInt


@dataclass
class _Train(_Run):
    precision: DistillationPrecision  # type: ignore[assignment]
    features: Part | None
    teacher: Part
    student: Part | None
    sampler: Part
    objective: Part
    divergence: Part
    weighting: Part
    sigma: Part
    fake_sigma: Part
    penalty: Part | None
    normalizer: Part | None
    schedule: ScheduleName
    augment: Part | None
    diff_augment: Part | None
    lora: Part | None
    pairs: Part | None
    terms: dict[str, Part]
    training: Part
    evaluation: Part
    generator: _Generator
    fake_score: _FakeScore
    discriminator: _Discriminator
    optimizer: dict[Literal["generator", "fake_score", "discriminator"], Part]
    averages: dict[str, Part | None]
    clip: _Clip
    diagnosis: _Diagnosis
    attention: Literal["sdpa", "xformers"]


@dataclass
class _Pretrain(_Run):
    features: Part | None
    augment: Part | None
    sampler: Part
    sigma: Part
    training: Part
    evaluation: Part
    network: Part
    prompt_dropout: Decay
    optimizer: dict[Literal["teacher"], Part]
    averages: dict[str, Part | None]
    clip: _PretrainClip


@dataclass
class _PretrainFeatures(_Run):
    classifier: Part
    held_out: Part | None
    features_training: ClassifierSettings


@dataclass
class _PretrainInvertible(_Run):
    invertible: Part
    held_out: Part | None
    invertible_training: InvertibleSettings


@dataclass
class _Sample(_Settings):
    features: Part | None
    teacher: Part | None
    sampler: Part | None
    run: PathText | None
    checkpoint: PathText | None
    sigma_init: Positive | None
    model: Literal["student", "teacher"]
    weights: Text | None
    images: PathText | None
    count: Samples
    seed_ranges: Steps
    prompts: Annotated[list[str], MinLen(1)] | None
    classes: Annotated[list[NonNegativeInt], MinLen(1)] | None
    batch_size: BatchSize
    save_reference: PathText | None
    format: Format
    save_to: PathText


@dataclass
class _Upscale:
    images: Annotated[list[PathText], MinLen(1)] | None
    output: PathText | None
    checkpoint: PathText | None
    weights: Text | None
    factor: UpscaleFactor | None
    seed: Seed
    tile: Side | None
    overlap: NonNegativeInt | None
    context: NonNegativeInt | None
    batch_size: BatchSize
    color: ColourFix
    label: NonNegativeInt | None
    format: FileFormat | None
    compare: bool
    overwrite: bool
    device: Device
    precision: Precision
    tf32: bool


def settings_of(config: Mapping[str, Any]) -> type:
    """The settings of the command whose configuration this is, by a key that it alone has."""
    commands = {
        "save_to": _Sample,
        "overwrite": _Upscale,
        "features_training": _PretrainFeatures,
        "invertible_training": _PretrainInvertible,
        "attention": _Train,
    }
    return next((settings for key, settings in commands.items() if key in config), _Pretrain)

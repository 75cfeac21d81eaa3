"""What is refused before training: parts that do not fit each other, each with how to mend it."""

from typing import Any

from omegaconf import DictConfig

from onestep.data.dataset import NoData, TrainingDataset, has_images
from onestep.denoiser import beyond_labels
from onestep.distillation.settings import GeneratorSettings
from onestep.models.diffusers.denoiser import DiffusersDenoiser
from onestep.models.diffusers.schedule import tabulated_timesteps
from onestep.models.generator import Generator
from onestep.objectives.base import Objective
from onestep.objectives.divergences import Divergence, ReverseKL


def check_fit(network: Any, data: TrainingDataset | NoData, name: str = "teacher") -> None:
    """Refuse a network that was made for other images or classes.

    Raises:
        ValueError: naming both sides.
    """
    for what, network_has, data_has in (
        ("channels", network.image_shape[0], data.image_shape[0]),
        ("resolution", network.image_shape[1:], data.image_shape[1:]),
        ("classes", network.label_dim, data.label_dim),
    ):
        if network_has != data_has:
            raise ValueError(
                f"the {name} does not fit the data: {what} {network_has} against {data_has}; choose another {name} "
                f"({name}=...) or other data (data=...)"
            )


def check_terms(
    config: DictConfig, settings: GeneratorSettings, objective: Objective, divergence: Divergence | None
) -> None:
    """Refuse terms of the loss that lack what they need, and pairs that no term needs.

    Raises:
        ValueError: saying how to have both or neither.
    """
    if (objective.needs_ratio or settings.gan_weight > 0) and config.discriminator.head is None:
        reason = (
            "this divergence needs the density ratio"
            if objective.needs_ratio
            else f"generator.gan_weight={settings.gan_weight} needs a discriminator"
        )
        raise ValueError(
            f"{reason}, and there is none: choose discriminator=teacher_features or "
            "discriminator=shared_encoder, or divergence=reverse_kl with generator.gan_weight=0"
        )
    if not hasattr(objective, "divergence") and not isinstance(divergence, ReverseKL | None):
        raise ValueError(
            f"{type(objective).__name__} descends no other divergence than reverse KL's: leave divergence=... out, or "
            "choose objective=f_distill or objective=uni_instruct"
        )
    if settings.regression_weight > 0 and config.get("pairs") is None:
        raise ValueError(
            f"generator.regression_weight={settings.regression_weight} needs pairs of noise and teacher image, and "
            "there are none: choose pairs=teacher, or set generator.regression_weight=0"
        )
    if settings.regression_weight == 0 and config.get("pairs") is not None:
        raise ValueError(
            "pairs of noise and teacher image would be drawn for nothing, as generator.regression_weight is 0: give it "
            "a weight, or set pairs=none"
        )


def check_data(config: DictConfig, data: TrainingDataset | NoData, teacher: Any, student: Any) -> None:
    """Refuse a discriminator without real images, conditions that the teacher does not take, and pairs that do not fit.

    Raises:
        ValueError: saying what to do instead.
    """
    if config.discriminator.head is not None and not has_images(data):
        raise ValueError(
            "the discriminator compares with real images, and there are none: choose data=... with images, of prompts "
            "a parquet file with data.image_column=..., or discriminator=none with divergence=reverse_kl and "
            "generator.gan_weight=0"
        )
    others = beyond_labels(teacher.condition_keys)
    if others and isinstance(data, NoData):
        raise ValueError(
            f"data=none has no condition but classes, and the teacher takes {', '.join(others)}: choose data=prompts "
            "data.path=..., which needs no images"
        )
    if config.get("pairs") is not None and tuple(student.noise_shape) != tuple(teacher.image_shape):
        raise ValueError(
            f"pairs of noise and teacher image have noise of the shape {tuple(teacher.image_shape)}, and the student "
            f"takes {tuple(student.noise_shape)}: set pairs=none and generator.regression_weight=0"
        )
    if config.get("pairs") is not None and others:
        raise ValueError("pairs of noise and teacher image are drawn of classes, not of prompts: use objective=dmd2")


def check_steps(generator: Generator) -> None:
    """Refuse, before it is trained, a text-to-image generator that no pipeline of diffusers could draw with."""
    denoiser = generator.denoiser
    if isinstance(denoiser, DiffusersDenoiser) and beyond_labels(denoiser.condition_keys):
        tabulated_timesteps(denoiser.schedule, [generator.sigma_init, *generator.later_sigmas])

"""Checks of trainings on samples with an image as their condition."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from onestep.data.dataset import NoData, TrainingDataset, contents
from onestep.objectives.terms import GeneratorTerm


def check_image_conditions(config: DictConfig, data: TrainingDataset | NoData, teacher: Any = None) -> bool:
    """True if the conditions of ``data`` have images, with the check that nothing separates them from the samples.

    Raises:
        ValueError: for a start at images that the data lack, an augmentation of the samples alone, classes that are
            drawn without regard to the images, or pairs of a ``teacher`` that does not take them.
    """
    start = config.generator.start if "generator" in config else "noise"
    if "image" not in contents(data)[1]:
        if start != "noise":
            raise ValueError(
                f"generator.start={start}: the conditions of this data have no images to start at: use data=paired, or "
                "generator.start=noise"
            )
        return False
    for name in ("augment", "diff_augment"):
        if config.get(name) is not None:
            raise ValueError(
                f"{name}=... transforms the samples and not the images of their conditions: set {name}=none"
            )
    if "generator" in config and config.generator.labels == "uniform":
        raise ValueError(
            "generator.labels=uniform draws classes without regard to the images of the conditions: set "
            "generator.labels=data"
        )
    if config.get("pairs") is not None and "image" not in teacher.condition_keys:
        raise ValueError(
            "pairs of noise and teacher image need a teacher that takes the images of the conditions: set pairs=none "
            "and generator.regression_weight=0, or use such a teacher"
        )
    return True


def ignore_conditions(teacher: Any, data: TrainingDataset | NoData) -> None:
    """Let the teacher, and the networks that are copied from it, ignore what only the student reads of a condition.

    It is the image of a teacher that is a prior of the samples, and the camera of a scene's render.
    """
    given = contents(data)[1]
    ignored = [name for name in ("image", "camera") if name in given and name not in teacher.condition_keys]
    if ignored:
        teacher.ignored_keys = ignored


def check_ground_truth(terms: Mapping[str, GeneratorTerm], teacher: Any, with_image: bool) -> None:
    """Check that the ``terms`` against a ground truth have one, and that all take its shape.

    Raises:
        ValueError: for data without images as conditions, other shapes, or latents in a term that reads pixels.
    """
    paired = [name for name, term in terms.items() if term.needs_ground_truth]
    if paired and not with_image:
        raise ValueError(
            f"terms=[{','.join(paired)}] compare a sample with the ground truth of its condition, and the conditions "
            "of this data have no images: use data=paired, or terms=none"
        )
    for name, term in terms.items():
        if term.reads_pixels and getattr(teacher, "denoises_latents", False):
            raise ValueError(
                f"terms.{name} reads pixels in [-1, 1], and these networks take latents: leave it out of terms=[...]"
            )
        term.check(tuple(teacher.image_shape))


def check_takes_image(network: Any, name: str, remedy: str) -> None:
    """Check that a network takes the images of the data's conditions.

    Raises:
        ValueError: naming it and the ``remedy``.
    """
    if "image" not in network.condition_keys:
        raise ValueError(
            f"the conditions of the data have images, and the {name} takes none: set {name}.image_condition=input or "
            f"residual{remedy}"
        )

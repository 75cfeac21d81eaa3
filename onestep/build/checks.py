"""Checks before training that the parts of a run fit each other."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from onestep.data.augmentation import EDMAugmentation
from onestep.data.dataset import NoData, TrainingDataset, contents
from onestep.data.latents import LatentDataset
from onestep.data.prompts import PromptDataset
from onestep.denoiser import beyond_labels, check_condition, prompt_keys
from onestep.distillation.settings import GeneratorSettings
from onestep.models.diffusers.schedule import tabulated_timesteps
from onestep.models.generator import Generator
from onestep.noise import SigmaDistribution
from onestep.objectives.base import Objective
from onestep.objectives.divergences import Divergence, ReverseKL
from onestep.objectives.terms import GeneratorTerm


def check_teacher(teacher: Any) -> Any:
    """The ``teacher``, checked to be a denoiser.

    Raises:
        ValueError: for a module without the attributes of one.
    """
    missing = [name for name in ("image_shape", "label_dim", "guidance") if not hasattr(teacher, name)]
    if missing:
        raise ValueError(
            f"a {type(teacher).__name__} is no teacher, it has no {', '.join(missing)}: wrap it in a subclass of "
            "onestep.DenoiserNetwork"
        )
    return teacher


def level_of(teacher: Any, name: str, setting: str) -> float:
    """The ``teacher``'s noise level ``name``, which a ``setting`` of null stands for.

    Raises:
        ValueError: if the teacher has none.
    """
    if not hasattr(teacher, name):
        raise ValueError(f"{setting} is null and the teacher has no {name}: set either, in data units")
    return float(getattr(teacher, name))


def check_fit(network: Any, data: TrainingDataset | NoData, name: str = "teacher") -> None:
    """Check that a network has the image shape and the classes of the data.

    Raises:
        ValueError: if they differ.
    """
    for name_of_value, of_network, of_data in (
        ("channels", network.image_shape[0], data.image_shape[0]),
        ("resolution", network.image_shape[1:], data.image_shape[1:]),
        ("classes", network.label_dim, data.label_dim),
    ):
        if of_network != of_data:
            remedy = ""
            if name_of_value == "classes" and of_data < of_network:
                setting = "data.images" if isinstance(data, LatentDataset) else "data"
                remedy = f", or {setting}.num_classes={of_network}"
                remedy += "" if of_data else f" with {setting}.classes=[N] for the class N of all images"
            raise ValueError(
                f"the {name} does not fit the data: {name_of_value} {of_network} against {of_data}; use another {name} "
                f"({name}=...), other data (data=...){remedy}"
            )


def check_terms(
    config: DictConfig, settings: GeneratorSettings, objective: Objective, divergence: Divergence | None,
    terms: Mapping[str, GeneratorTerm],
) -> None:  # fmt: skip
    """Check that each term of the loss has its inputs, and that a term uses the pairs.

    Raises:
        ValueError: for a term without its inputs, or pairs without a term.
    """
    if objective.needs_adversarial:
        _check_adversarial(settings)
    elif not objective.has_losses:
        _check_terms_alone(settings, terms)
    if (objective.needs_ratio or settings.gan_weight > 0) and config.discriminator.head is None:
        reason = (
            "this divergence needs the density ratio"
            if objective.needs_ratio
            else f"generator.gan_weight={settings.gan_weight} needs a discriminator"
        )
        raise ValueError(
            f"{reason}, but discriminator.head is null: use discriminator=teacher_features or "
            "discriminator=convolutional"
            + ("" if objective.needs_adversarial else ", or divergence=reverse_kl with generator.gan_weight=0")
        )
    _check_discriminator(config.discriminator)
    if not hasattr(objective, "divergence") and not isinstance(divergence, ReverseKL | None):
        what = "minimises reverse KL only" if objective.has_losses else "has no divergence"
        raise ValueError(
            f"{type(objective).__name__} {what}, "
            f"got divergence={type(divergence).__name__}: remove divergence=..., or use objective=f_distill or "
            "objective=uni_instruct"
        )
    if settings.regression_weight > 0 and config.get("pairs") is None:
        raise ValueError(
            f"generator.regression_weight={settings.regression_weight} needs pairs of noise and teacher image: "
            "use pairs=teacher, or set generator.regression_weight=0"
        )
    reading = [name for name, term in terms.items() if term.needs_pairs]
    if reading and config.get("pairs") is None:
        raise ValueError(
            f"terms=[{','.join(reading)}] read pairs of noise and teacher image: use pairs=teacher, or leave them out"
        )
    if settings.regression_weight == 0 and not reading and config.get("pairs") is not None:
        raise ValueError(
            "pairs of noise and teacher image are not used with generator.regression_weight=0: set a positive weight, "
            "add a term that reads them, or set pairs=none"
        )


def _check_adversarial(settings: GeneratorSettings) -> None:
    """Check that the adversarial term can be the whole loss of the generator.

    Raises:
        ValueError: if its weight is 0 or becomes positive during the training, or it needs the teacher's predictions.
    """
    whole = "the adversarial term is the whole loss of this objective"
    if settings.gan_weight == 0:
        raise ValueError(
            f"generator.gan_weight={settings.gan_weight}: {whole}: set a positive weight, or use another objective"
        )
    if settings.gan_starts_at > settings.starts_at:
        raise ValueError(
            f"generator.gan_starts_at={settings.gan_starts_at}: {whole}, which would have none before: set it to 0; "
            "generator.starts_at trains the discriminator alone first"
        )
    _check_no_distance(settings, whole)


def _check_terms_alone(settings: GeneratorSettings, terms: Mapping[str, GeneratorTerm]) -> None:
    """Check that other terms can be the whole loss of the generator.

    Raises:
        ValueError: if there is none, or the adversarial term needs the teacher's predictions.
    """
    if not terms and settings.regression_weight == 0 and settings.gan_weight == 0:
        raise ValueError(
            "objective=terms_alone has no losses of its own, and there are no others: add terms=[...], or pairs=teacher"
            " with a generator.regression_weight above 0, or use another objective"
        )
    _check_no_distance(settings, "this objective has no losses of its own")


def _check_no_distance(settings: GeneratorSettings, reason: str) -> None:
    if settings.gan_weighting == "distance":
        raise ValueError(
            f"generator.gan_weighting=distance: it weights by the teacher's prediction, and {reason}, without one: use "
            "generator.gan_weighting=constant"
        )


def reads_pretrained(settings: DictConfig) -> bool:
    """True for a discriminator on the features of a pretrained network."""
    return settings.head is not None and settings.head.get("features_from") == "pretrained"


def _check_discriminator(settings: DictConfig) -> None:
    """Check that the discriminator has a noise level that it is for, and a pretrained network if it needs one.

    Raises:
        ValueError: for another level, or without such a network.
    """
    pretrained = reads_pretrained(settings)
    for name in ("network", "noise_level") if pretrained else ():
        if settings[name] is None:
            raise ValueError(
                f"discriminator.{name} is null: discriminator=pretrained_features needs one, as its features are those "
                "of a network of its own, and know no noise level"
            )
    if settings.noise_level == 0 and not pretrained:
        raise ValueError(
            "discriminator.noise_level=0: this discriminator takes noised samples: set a level above 0, or use "
            "discriminator=pretrained_features"
        )


def check_data(config: DictConfig, data: TrainingDataset | NoData, teacher: Any) -> None:
    """Check that the data has real images for a discriminator and conditions for the teacher.

    Raises:
        ValueError: if the data lacks either, or for pairs with prompts.
    """
    if config.discriminator.head is not None and not contents(data)[0]:
        raise ValueError(
            "the discriminator needs real images, and this data has none: use data=... with images (for prompts a "
            "parquet file with data.image_column=...), another objective, or discriminator=none with "
            "divergence=reverse_kl and generator.gan_weight=0"
        )
    check_conditions(data, teacher, "teacher")
    if config.get("pairs") is not None and prompt_keys(teacher.condition_keys):
        raise ValueError(
            "pairs of noise and teacher image support classes and images, not prompts: set pairs=none, or use "
            "objective=dmd2"
        )


def check_conditions(data: TrainingDataset | NoData, network: Any, name: str) -> None:
    """Check that the data has the conditions that a network takes besides classes.

    Raises:
        ValueError: naming them.
    """
    others = beyond_labels(network.condition_keys)
    if others and isinstance(data, NoData):
        use = "data that has images as conditions" if "image" in others else "data=prompts data.path=..."
        raise ValueError(
            f"data=none has no conditions but classes, and the {name} takes {', '.join(others)}: use {use}"
            + ("" if "image" in others else ", which needs no images")
        )
    if others and not isinstance(data, NoData | PromptDataset):
        check_condition(contents(data)[1], network.condition_keys, required=True)


def check_augmentation(config: DictConfig, augment: EDMAugmentation | None, fake_score: Any, teacher: Any) -> None:
    """Check that the networks of the critics' updates take the labels of the augmentation; ``teacher`` or None.

    Raises:
        ValueError: for one that does not, or a method without a fake score.
    """
    if augment is None:
        return
    if fake_score is None:
        raise ValueError("augment=... is for the fake score's images, and this objective has none: set augment=none")
    described = f"set fake_score.network.options.augment_dim={augment.label_dim}"
    of_teacher = "use a teacher that was trained with augment=edm"
    remedy = of_teacher if config.fake_score.network is None else described
    check_augmented(augment, fake_score, "the fake score's ", remedy)
    if teacher is not None:
        check_augmented(
            augment, teacher, "the teacher's ", f"{of_teacher}, discriminator=shared_encoder without penalty=scores"
        )


def check_augmented(augment: EDMAugmentation, network: Any, of: str, remedy: str) -> None:
    """Check that a network takes augmented images and their labels; ``of`` precedes its ``augment_dim`` in a message.

    Raises:
        ValueError: with the ``remedy``, if it does not.
    """
    if getattr(network, "denoises_latents", False):
        raise ValueError("augment=... transforms pixels in [-1, 1], and these networks take latents: set augment=none")
    taken = getattr(network, "augment_dim", 0)
    if taken != augment.label_dim:
        raise ValueError(
            f"{of}augment_dim={taken}: expected {augment.label_dim}, the labels of augment=...; {remedy}, or set "
            "augment=none"
        )


def check_noise_of_pairs(config: DictConfig, teacher: Any, student: Any) -> None:
    """Check that the noise of pairs, which the teacher takes, is the student's too.

    Raises:
        ValueError: naming both shapes.
    """
    if config.get("pairs") is not None and tuple(student.noise_shape) != tuple(teacher.image_shape):
        raise ValueError(
            f"pairs: their noise has the teacher's shape {tuple(teacher.image_shape)}, and the student takes "
            f"{tuple(student.noise_shape)}: set pairs=none and generator.regression_weight=0"
        )


def check_term_fit(terms: Mapping[str, GeneratorTerm], student: Any, teacher: Any, sigma: SigmaDistribution) -> None:
    """Check that all ``terms`` are defined for the student and its teacher, with the objective's levels ``sigma``.

    Raises:
        ValueError: naming one that is not.
    """
    for name, term in terms.items():
        try:
            term.check_student(student, teacher)
            for step in range(student.network_evaluations):
                term.levels_of_step(sigma, 0.0, student, step)
        except ValueError as error:
            raise ValueError(f"terms.{name}: {error}") from None


def check_steps(generator: Generator) -> None:
    """Check that a pipeline of diffusers supports the noise levels of a text-to-image generator.

    Raises:
        ValueError: see :func:`onestep.models.diffusers.schedule.tabulated_timesteps`.
    """
    denoiser = generator.denoiser
    if not beyond_labels(denoiser.condition_keys):
        return
    from onestep.models.diffusers.denoiser import DiffusersDenoiser  # imports diffusers

    if isinstance(denoiser, DiffusersDenoiser):
        tabulated_timesteps(denoiser.schedule, [generator.sigma_init, *generator.later_sigmas])

"""The trained networks of a distillation: the generator, the fake score and the discriminator's head."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from onestep.build.checks import check_conditions, check_fit, check_steps, reads_pretrained
from onestep.build.evaluation import classes_of, reference_of
from onestep.config import instantiate
from onestep.data.dataset import NoData, TrainingDataset
from onestep.data.paired import PairedData
from onestep.distillation.settings import GeneratorSettings
from onestep.distillation.view import View
from onestep.engine.checkpoint import damage, is_checkpoint
from onestep.engine.course import Course
from onestep.models.base import DenoiserNetwork
from onestep.models.diffusers.lora import LoRA
from onestep.models.diffusers.quantized import is_quantized
from onestep.models.discriminator import Discriminator
from onestep.models.generator import Generator
from onestep.models.loading import load_generator, load_teacher
from onestep.models.pretrained_features import PretrainedFeatures
from onestep.models.spectral_norm import add_spectral_norm
from onestep.models.steps import add_step_embedding
from onestep.models.weights import Weights
from onestep.objectives.base import Objective
from onestep.reading import one_line, read_json


def build_generator(
    config: DictConfig, settings: GeneratorSettings, teacher: Any, data: TrainingDataset | NoData
) -> Generator:
    """The student of the configuration: a network that is evaluated in one or several steps."""
    network = initial_student(config, "generator", settings.sigma_init, teacher, data)
    drawn = classes_of(reference_of(data))
    classes = sorted({*drawn}) if drawn is not None and len({*drawn}) < network.label_dim else None
    generator = Generator(
        network, settings.sigma_init, settings.later_sigmas, classes, settings.start, settings.renoise
    )
    generator.upscale_factor = data.factor if isinstance(data, PairedData) else None
    check_steps(generator)
    return generator


def initial_student(
    config: DictConfig, name: Literal["generator", "fake_score"], sigma_init: float, teacher: Any,
    data: TrainingDataset | NoData,
) -> DenoiserNetwork:  # fmt: skip
    """The initial network of the generator or the fake score: a description, that of ``init``, or the teacher's copy.

    A checkpoint of a run has the weights alone, of a network that is described or copied from the teacher. Another
    generator is one for ``sigma_init`` and ``generator.start``.

    Raises:
        ValueError: if ``init`` and ``network`` are both set, or the network of ``init`` does not fit the data.
    """
    start = config[name]
    of_checkpoint = start.init is not None and is_checkpoint(Path(start.init))
    if start.init is None or of_checkpoint:
        network = trainable(config, name, initial_network(start.network, f"{name}.network", teacher, data))
        levels = {"sigma_init": sigma_init, "start": config.generator.start}
        return _load_student(Path(start.init), name, levels, network) if of_checkpoint else network
    if start.network is not None:
        raise ValueError(f"{name}.network and {name}.init={start.init} are both set: set one of them to null")
    of_generator = name == "generator"
    try:
        generator = load_generator(start.init, sigma_init) if of_generator else None
        if generator is not None and generator.start != start.start:
            raise ValueError(f"it holds a generator for start={generator.start}, not {start.start}")
        network = load_teacher(start.init) if generator is None else generator.denoiser
        check_fit(network, data, name)
        check_conditions(data, network, name)
    except ValueError as error:
        level = f", generator.sigma_init={sigma_init}" if of_generator else ""
        raise ValueError(f"{name}.init={start.init}{level}: {error}") from error
    return trainable(config, name, network)


def _load_student(folder: Path, name: str, settings: Mapping[str, Any], network: DenoiserNetwork) -> DenoiserNetwork:
    """Load the weights of ``name`` from the checkpoint in ``folder`` into ``network``, and return it.

    Raises:
        ValueError: if the checkpoint is damaged or has no such weights, ``network`` is a LoRA student, which shares its
            frozen weights with the teacher, or the generator is one for other ``settings``.
    """
    setting = f"{name}.init={folder}"
    if reason := damage(folder):
        raise ValueError(f"{setting}: {reason}")
    if not all(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"{setting}: a checkpoint has all weights, and lora trains a part of them: set lora=null")
    try:
        recorded = read_json(folder / "course.json", Course).settings
        for key, value in settings.items() if name == "generator" else ():
            theirs = recorded.get(f"generator.{key}")
            if theirs not in (None, value):
                raise ValueError(f"it holds a generator for {key}={one_line(theirs)}, not {value}")
        weights = Weights.find(folder, base=name).renamed(lambda key: key.removeprefix("denoiser."))
        weights.check(network, f"the {name}")
        network.load_state_dict(weights.read(None))
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from error
    return network


def initial_network(
    description: DictConfig | None, name: str, teacher: Any, data: TrainingDataset | NoData
) -> DenoiserNetwork:
    """The network of ``description``, or the teacher if it is None."""
    if description is not None:
        network: DenoiserNetwork = instantiate(description)
        check_fit(network, data, name)
        check_conditions(data, network, name)
        return network
    if not isinstance(teacher, DenoiserNetwork):
        raise ValueError(
            f"{name}=null copies the teacher, and this teacher is not a network: describe a network as {name}=..."
        )
    return teacher


def trainable(config: DictConfig, name: str, network: DenoiserNetwork) -> DenoiserNetwork:
    """A trainable copy of ``network``: all parameters, or LoRA if ``config.lora.students`` includes ``name``.

    It is in eval mode, because dropout would make its two uses in an iteration disagree. A fake score may also know the
    generator's step.
    """
    lora: LoRA | None = instantiate(config.get("lora"))
    student: DenoiserNetwork
    if lora is not None and name in lora.students:
        student = lora.apply(network)
    elif is_quantized(network):
        raise ValueError(
            f"the {name} would train all weights of a teacher whose layers have 8 or 4 bits, which are frozen: set "
            "lora=attention with lora.students=[generator,fake_score], or teacher.quantize=null"
        )
    else:  # in float32, for every precision of the teacher
        student = copy.deepcopy(network).float().requires_grad_(True)
    if name == "fake_score" and config.fake_score.step_aware:
        add_step_embedding(student, 1 + len(config.generator.later_sigmas), "fake_score.step_aware")
    return student.set_guidance(1.0, network.unconditional).eval()


def build_view(config: DictConfig, teacher: Any, objective: Objective) -> View:
    """What the discriminator sees.

    Raises:
        ValueError: for an augmentation of anything but images, or an objective that needs another ratio.
    """
    view = View(config.discriminator.noise_level, instantiate(config.get("diff_augment")))
    view.check(objective)
    if view.augment is not None and (_takes_latents(teacher) or max(teacher.image_shape[1:]) == 1):
        raise ValueError("diff_augment=... transforms images, and these networks take none: set diff_augment=none")
    return view


def _takes_latents(teacher: Any) -> bool:
    return getattr(teacher, "denoises_latents", False)


def build_pretrained(config: DictConfig, teacher: Any) -> PretrainedFeatures | None:
    """The pretrained network whose features the discriminator reads; None for another one.

    Raises:
        ValueError: for latents, or a network that does not fit the samples.
    """
    if not reads_pretrained(config.discriminator):
        return None
    if _takes_latents(teacher):
        raise ValueError(
            "discriminator=pretrained_features reads pixels in [-1, 1], and these networks take latents: use another "
            "discriminator"
        )
    return PretrainedFeatures(instantiate(config.discriminator.network), teacher.image_shape)


def build_discriminator(
    config: DictConfig, teacher: Any, fake_score: DenoiserNetwork | None, pretrained: PretrainedFeatures | None,
    with_image: bool,
) -> Discriminator:  # fmt: skip
    """The discriminator: a head on the features of one of the networks, or a network of its own.

    The latter also sees the images of the conditions, if they have them: ``with_image``. Beside a teacher that sees the
    samples' differences from them, it does too.

    Raises:
        ValueError: if that network does not exist, or has no features, or not those that the head reads, or for a
            spectral norm of no layers.
    """
    make = instantiate(config.discriminator.head)
    features_from = make.keywords.get("features_from")
    host = {"fake_score": fake_score, "pretrained": pretrained}.get(features_from, teacher)
    if host is None:
        raise ValueError(
            "this objective has no fake score with an encoder to share: use discriminator=teacher_features, or a "
            "network of its own (discriminator=convolutional; points for experiment=mixture)"
        )
    own = [teacher.image_shape] * (2 if with_image else 1)
    shapes = own if features_from == "samples" else host.feature_shapes
    if not shapes:
        name, other = ("fake score", "teacher") if host is fake_score else ("teacher", "fake score")
        raise ValueError(
            f"the {name} has no features for the discriminator: use the features of the {other}, a network of its own "
            "(discriminator=convolutional), give the network feature_shapes and feature_blocks, or use "
            "discriminator=none with divergence=reverse_kl and generator.gan_weight=0"
        )
    residual = features_from == "samples" and getattr(teacher, "image_condition", "none") == "residual"
    options = {"residual_std": teacher.sigma_data} if residual else {}
    discriminator: Discriminator = make(shapes, teacher.label_dim, **options)
    if config.discriminator.spectral_norm:
        add_spectral_norm(discriminator)
    return discriminator

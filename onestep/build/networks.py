"""The trained networks of a distillation: the generator, the fake score and the discriminator's head."""

import copy
from typing import Any

from omegaconf import DictConfig

from onestep.build.checks import check_fit, check_steps
from onestep.build.evaluation import classes_of, reference_of
from onestep.config import instantiate
from onestep.data.dataset import NoData, TrainingDataset
from onestep.distillation.settings import GeneratorSettings
from onestep.models.base import DenoiserNetwork
from onestep.models.diffusers.lora import LoRA
from onestep.models.discriminator import Discriminator
from onestep.models.generator import Generator
from onestep.models.loading import load_generator


def build_generator(
    config: DictConfig, settings: GeneratorSettings, teacher: Any, data: TrainingDataset | NoData
) -> Generator:
    """The student of the configuration: a network that is evaluated in one or several steps."""
    network = initial_generator(config, settings, teacher, data)
    drawn = classes_of(reference_of(data))
    classes = sorted({*drawn}) if drawn is not None and len({*drawn}) < network.label_dim else None
    generator = Generator(network, settings.sigma_init, settings.later_sigmas, classes)
    check_steps(generator)
    return generator


def initial_generator(
    config: DictConfig, settings: GeneratorSettings, teacher: Any, data: TrainingDataset | NoData
) -> DenoiserNetwork:
    """The generator's initial network: a description, another generator's network, or a copy of the teacher.

    Raises:
        ValueError: if ``generator.init`` and ``generator.network`` are both set, or the network does not fit the data.
    """
    start = config.generator
    if start.init is None:
        return trainable(config, "generator", initial_network(start.network, "generator.network", teacher, data))
    if start.network is not None:
        raise ValueError(f"generator.network and generator.init={start.init} are both set: set one of them to null")
    try:
        network = load_generator(start.init, settings.sigma_init).denoiser
        check_fit(network, data, "generator")
    except ValueError as error:
        raise ValueError(f"generator.init={start.init}, generator.sigma_init={settings.sigma_init}: {error}") from error
    return trainable(config, "generator", network)


def initial_network(
    description: DictConfig | None, name: str, teacher: Any, data: TrainingDataset | NoData
) -> DenoiserNetwork:
    """The network of ``description``, or the teacher if it is None."""
    if description is not None:
        network: DenoiserNetwork = instantiate(description)
        check_fit(network, data, name)
        return network
    if not isinstance(teacher, DenoiserNetwork):
        raise ValueError(
            f"{name}=null copies the teacher, and this teacher is not a network: describe a network as {name}=..."
        )
    return teacher


def trainable(config: DictConfig, name: str, network: DenoiserNetwork) -> DenoiserNetwork:
    """A trainable copy of ``network``: all parameters, or LoRA if ``config.lora.students`` includes ``name``.

    It is in eval mode, because dropout would make its two uses in an iteration disagree.
    """
    lora: LoRA | None = instantiate(config.get("lora"))
    if lora is not None and name in lora.students:
        return lora.apply(network).set_guidance(1.0).eval()
    # Trained in float32, for every precision of the teacher.
    return copy.deepcopy(network).float().requires_grad_(True).set_guidance(1.0).eval()


def build_discriminator(config: DictConfig, teacher: Any, fake_score: DenoiserNetwork | None) -> Discriminator:
    """The discriminator's head on the features of the teacher or the fake score.

    Raises:
        ValueError: if that network does not exist, or has no features, or not those that the head reads.
    """
    make = instantiate(config.discriminator.head)
    host = fake_score if make.keywords.get("features_from") == "fake_score" else teacher
    if host is None:
        raise ValueError(
            "this objective has no fake score with an encoder to share: use discriminator=teacher_features"
        )
    if not host.feature_shapes:
        name, other = ("fake score", "teacher") if host is fake_score else ("teacher", "fake score")
        raise ValueError(
            f"the {name} has no features for the discriminator: use the features of the {other}, give the network "
            "feature_shapes and feature_blocks, or use discriminator=none with divergence=reverse_kl and "
            "generator.gan_weight=0"
        )
    discriminator: Discriminator = make(host.feature_shapes)
    return discriminator

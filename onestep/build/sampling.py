"""The command ``sample``, built from its configuration and that of a run."""

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from onestep.build.evaluation import build_evaluator, classes_of
from onestep.build.processes import separate_processes
from onestep.build.recorded import Parts
from onestep.build.use import check_use_in_sampling
from onestep.config import CONF, compose, instantiate, record_overrides
from onestep.data.latents import LatentDataset
from onestep.data.map_style import ItemConditions
from onestep.data.paired import PairedFolders, PairedImages
from onestep.data.prompts import PromptDataset, read_prompts
from onestep.data.view_prompts import ViewPrompts, Views
from onestep.denoiser import keys_of_data
from onestep.engine.launch import check_launch
from onestep.evaluation.generate import SampleFunction, SampleSpace
from onestep.evaluation.sample import evaluate_files, generator_folder, write_samples
from onestep.evaluation.writing import check_folder
from onestep.metrics.evaluator import Evaluator
from onestep.models.base import DenoiserNetwork
from onestep.models.diffusers.pipeline import TeacherPipeline
from onestep.models.generator import Generator
from onestep.models.loading import BUNDLED, generator_path, load_generator
from onestep.models.scene.coloured import ColouredScene, holds_coloured_scene
from onestep.models.scene.generator import AnyScene, holds_any_scene, load_any_scene
from onestep.precision import allow_tf32, choose_precision
from onestep.processes import from_main_process
from onestep.samplers import Sampler
from onestep.seeding import check_seeds


@separate_processes()
def sample(config: DictConfig) -> dict[str, Any]:
    """Generate ``config.count`` images, write them, and evaluate ``config.metrics``; or evaluate ``config.images``.

    Returns:
        The printed result, see :func:`onestep.evaluation.sample.write_samples`.

    Raises:
        ValueError: for a missing run or checkpoint, or parts that do not fit each other.
    """
    check_launch()
    check_use_in_sampling(config)
    precision = choose_precision(config.precision, config.device)
    allow_tf32(config.tf32)
    parts = Parts(config)
    accelerator = Accelerator(mixed_precision=precision, cpu=config.device == "cpu")
    if config.images is not None:
        if not config.get("metrics"):
            raise ValueError(f"images={config.images}: expected metrics, such as metrics=[fid]")
        return evaluate_files(config.images, _evaluator(config, parts, accelerator.device))
    place = from_main_process(lambda: _place(config))
    function, network, evaluations = load_model(config, parts, accelerator.device)
    evaluator = _evaluator(config, parts, accelerator.device) if config.get("metrics") else None
    space = sampling_space(config, parts, network, _classes(config, function, network, evaluator))
    result = write_samples(
        function,
        evaluations,
        replace(space, noise_shape=getattr(function, "noise_shape", space.noise_shape)),
        range(config.seed, config.seed + config.count),
        config.batch_size,
        accelerator,
        place,
        config.format,
        evaluator,
        config.seed_ranges,
    )
    if accelerator.is_main_process:
        Console().print({name: value for name, value in result.items() if name != "results"}, soft_wrap=True)
    return result


def _place(config: DictConfig) -> Path:
    """The folder of the samples, after the checks of what is drawn into it."""
    last = config.seed + config.count * config.seed_ranges - 1
    check_seeds(config.seed, last, f"seed={config.seed} count={config.count} seed_ranges={config.seed_ranges}")
    check_folder(Path(config.save_to))
    record_overrides(config)
    return Path(config.save_to)


def load_model(config: DictConfig, parts: Parts, device: torch.device) -> tuple[SampleFunction, DenoiserNetwork, int]:
    """The function that samples, its network, and network evaluations per sample."""
    if config.model == "teacher":
        if parts["teacher"] is None or parts["sampler"] is None:
            raise ValueError("model=teacher: expected run=..., or teacher=... and sampler=...")
        teacher: DenoiserNetwork = instantiate(parts["teacher"]).to(device)
        if isinstance(teacher, DenoiserNetwork):
            # Encodes the empty prompt on the device, for guidance by text without an unconditional condition.
            teacher.set_guidance(teacher.guidance, teacher.unconditional, teacher.guidance_rule)
        sampler: Sampler = instantiate(parts["sampler"])
        return partial(sampler, teacher), teacher, sampler.network_evaluations * teacher.network_evaluations
    if (config.run is None) == (config.checkpoint is None):
        raise ValueError("expected either run=... (a run's folder) or checkpoint=... (a generator's folder or file)")
    path = config.checkpoint if config.run is None else generator_folder(Path(config.run), config.weights)
    if holds_any_scene(path):
        return _scene(config, load_any_scene(path).to(device))
    if holds_coloured_scene(path):
        return _scene(config, ColouredScene.from_pretrained(path).to(device))
    generator = load_generator(path, config.sigma_init).to(device)
    return generator, generator.denoiser, generator.network_evaluations


def _scene(config: DictConfig, scene: AnyScene | ColouredScene) -> tuple[SampleFunction, Any, int]:
    """A scene as :func:`load_model` returns it; it is its own network."""
    if config.sigma_init is not None:
        raise ValueError(f"sigma_init={config.sigma_init}: a scene has no noise level: set sigma_init=null")
    if isinstance(scene, AnyScene) and (unseen := sorted({*(config.classes or ())} - {*scene.classes})):
        raise ValueError(f"classes={list(config.classes)}: {unseen} have no view in this scene, {scene.classes} have")
    return scene, scene, scene.network_evaluations


def _classes(
    config: DictConfig, function: SampleFunction, network: DenoiserNetwork, evaluator: Evaluator | None
) -> list[int] | None:
    """The cycle of classes: the requested ones, those of the metrics' images, or those that the generator knows."""
    if config.classes is not None:
        return list(config.classes)
    reference = None if evaluator is None else evaluator.reference
    of_images = getattr(reference, "label_dim", 0) if network.label_dim else 0
    if of_images not in (0, network.label_dim):
        warnings.warn(
            f"the metrics' images have {of_images} classes, the network {network.label_dim}: samples are of random "
            f"classes; if the classes are the same, set data.num_classes={network.label_dim}, or choose classes=[...]",
            stacklevel=2,
        )
    found = classes_of(reference) if of_images == network.label_dim else None
    if isinstance(function, AnyScene) or (found is None and isinstance(function, Generator)):
        found = function.classes
    return None if found is None else list(found)


def sampling_space(
    config: DictConfig, parts: Parts, network: DenoiserNetwork, classes: list[int] | None
) -> SampleSpace:
    """The classes or prompts, or the degraded images, which are read; and the decoder of latents."""
    channels, height, width = network.image_shape
    latent = network.denoises_latents or parts.describes("data", LatentDataset)
    latent = latent or (channels not in (1, 3) and height * width > 1)  # one pixel is a point
    others = keys_of_data(network)
    takes_images = others == ["image"]
    takes_cameras = others == ["camera"]
    takes_prompts = bool(others) and not (takes_images or takes_cameras)
    pipeline = (network.pipeline or pipeline_of(config, parts)) if latent or takes_prompts else None
    if latent and pipeline is None:
        raise ValueError(
            f"these samples are latents of {channels} channels, and no autoencoder decodes them: set teacher=diffusers "
            "and teacher.path=..., the pipeline with the autoencoder; for networks of EDM2 teacher=edm2_imagenet512"
        )
    prompts = None if config.prompts is None else read_prompts(_plain(config.prompts), "prompt")
    if takes_prompts and prompts is None and parts.describes("data", PromptDataset):
        data = parts["data"]
        prompts = read_prompts(_plain(data.path), data.column)
    if takes_prompts and (prompts is None or pipeline is None):
        raise ValueError(
            "a text-to-image network needs run=..., or prompts=[...] and teacher=diffusers with teacher.path=..., the "
            "pipeline with the text encoders"
        )
    if prompts is not None and not takes_prompts:
        raise ValueError(f"prompts={prompts}: this network takes no prompts; set prompts=null")
    conditions = pipeline.encode_prompts(prompts) if pipeline is not None and prompts is not None else None
    decode = pipeline.decoder(channels) if latent and pipeline is not None else None
    if takes_images:
        if config.classes is not None:
            raise ValueError(
                f"classes={list(config.classes)}: samples have the classes of the images: set classes=null"
            )
        return SampleSpace.of(network, None, _degraded_images(parts), decode)
    if takes_cameras:
        return SampleSpace.of(network, classes, _cameras(parts), decode)
    return SampleSpace.of(network, classes, conditions, decode)


def _degraded_images(parts: Parts) -> ItemConditions:
    """The conditions of a network that takes degraded images, those of the data's evaluation."""
    if not any(parts.describes("data", kind) for kind in (PairedImages, PairedFolders)):
        raise ValueError(
            "a network that takes degraded images needs them: set run=..., or data=paired with degradation=...; "
            "onestep upscale takes images of its own"
        )
    return ItemConditions(instantiate(parts["data"]).evaluated)


def _cameras(parts: Parts) -> Views:
    """The cameras of the data, with their prompts; the text encoders are not read."""
    if not parts.describes("data", ViewPrompts):
        raise ValueError(
            "a coloured scene needs cameras: set run=..., or data=view_prompts with data.prompt=..., and for latents "
            "teacher=..., whose autoencoder decodes them"
        )
    settings = {name: _plain(value) for name, value in parts["data"].items() if name not in ("_target_", "pipeline")}
    return Views(**settings)


def has_bundled_teacher(source: str) -> bool:
    """True for a bundled generator's name, if there is a bundled teacher of that name."""
    return generator_path(source).parent == BUNDLED and (CONF / "teacher" / f"{source}.yaml").is_file()


def pipeline_of(config: DictConfig, parts: Parts) -> TeacherPipeline | None:
    """The text encoders and the autoencoder of the teacher or, if it has none, of the data's latents.

    The teacher of a bundled generator is the bundled one of its name.
    """
    found = [parts["teacher"], parts["data"]]
    if config.teacher is None and config.checkpoint is not None and has_bundled_teacher(config.checkpoint):
        found = [compose("sample", [f"teacher={config.checkpoint}"]).teacher]
    for part in found:
        node = None if part is None else part.get("pipeline")
        if node is not None:
            return instantiate(node)
    return None


def _evaluator(config: DictConfig, parts: Parts, device: torch.device) -> Evaluator:
    images: Any = None
    if config.reference is None and not any(parts.describes("data", kind) for kind in (PromptDataset, ViewPrompts)):
        # Decoded samples are compared with the images of the latents.
        data = parts["data"]
        images = instantiate(data.images if parts.describes("data", LatentDataset) else data)
    features = instantiate(parts["features"])
    evaluator = build_evaluator(config, instantiate(config.metrics), features, images, device)
    if config.save_reference is not None:
        evaluator.save_reference(config.save_reference)
    return evaluator


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node

"""What ``sample.py`` does: draw, write, and evaluate images of a trained generator or of its teacher."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from onestep.build.distillation import guide
from onestep.build.evaluation import build_evaluator
from onestep.config import instantiate
from onestep.data.dataset import ImageDataset
from onestep.data.latents import describes_latents
from onestep.evaluation.evaluate import evaluate, least_of, open_samples, print_results
from onestep.evaluation.generate import Draw, draw_share
from onestep.evaluation.writing import FORMATS, SampleWriter
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.inception import PUBLISHED_SHA256, InceptionFeatures
from onestep.metrics.protocols import TorchFidelityFeatures
from onestep.models.base import DenoiserNetwork
from onestep.models.loading import load_generator
from onestep.precision import choose_precision
from onestep.processes import gather_rows, process_rows, rank_and_count
from onestep.samplers import Sampler

MODELS = ("student", "teacher")
WEIGHTS = {"ema": "generator", "raw": "generator_raw"}

_PARTS_LIVE_IN = (
    "onestep.models.loading",
    "onestep.models.diffusers.loading",
    "onestep.samplers",
    "onestep.data.",
    "onestep.metrics.",
    "onestep.toy.",
)


def sample(config: DictConfig) -> dict[str, Any]:
    """Draw ``config.count`` images as ``config`` says, write them, and evaluate them where it names metrics.

    Returns:
        What is also printed: where the images lie, how many, network evaluations an image, images a second, drawn and
        written, and the metrics.

    Raises:
        ValueError: for an unknown choice, a missing run or checkpoint, or parts that do not fit each other.
    """
    _check_choices(config)
    precision = choose_precision(config.precision, config.device)
    parts = _parts(config)
    accelerator = Accelerator(mixed_precision=precision, cpu=config.device == "cpu")
    if config.images is not None:
        return _evaluate_files(config, parts, accelerator.device)
    draw, network, evaluations = _model(config, parts, accelerator.device)
    data = _data(config, parts, network)
    evaluator = _evaluator(config, parts, accelerator.device)

    if evaluator is not None:
        evaluator.check_samples(config.count)  # before anything is drawn

    main, device = accelerator.is_main_process, accelerator.device
    if config.count < accelerator.num_processes:
        raise ValueError(f"count={config.count}: {accelerator.num_processes} processes have not one sample each")
    draw_own = partial(
        draw_share,
        draw,
        batch_size=config.batch_size,
        image_shape=network.image_shape,
        label_dim=network.label_dim,
        accelerator=accelerator,
        data=data,
        classes=None if config.classes is None else list(config.classes),
        progress="drawing" if main else None,
    )

    seeds = range(config.seed, config.seed + config.count)
    started = time.monotonic()
    writer = SampleWriter(Path(config.save_to), config.format, network.image_shape)
    images = torch.cat(list(writer.write(draw_own(seeds), [seeds[place] for place in process_rows(len(seeds))])))
    writer.wait()
    place = _finish(writer, images, seeds, device)
    accelerator.wait_for_everyone()
    seconds = time.monotonic() - started
    result: dict[str, Any] = {
        "images": str(place) if main else None,
        "count": len(seeds),
        "network_evaluations": evaluations,
        "samples_per_second": float(f"{len(seeds) / seconds:.4g}"),
    }
    if evaluator is not None:
        prompts = getattr(data, "prompts", None)
        ranges = [evaluate(evaluator, images, seeds, evaluations, prompts)]
        for _ in range(1, config.seed_ranges):
            seeds = range(seeds.stop, seeds.stop + config.count)
            ranges.append(evaluate(evaluator, torch.cat(list(draw_own(seeds))), seeds, evaluations, prompts))
        result |= _with_results(ranges) if main else {}
    accelerator.end_training()
    if main:
        Console().print({name: value for name, value in result.items() if name != "results"})
    return result


def _check_choices(config: DictConfig) -> None:
    for name, choices in (
        ("model", MODELS),
        ("weights", tuple(WEIGHTS)),
        ("format", FORMATS),
    ):
        if config[name] not in choices:
            raise ValueError(f"{name}={config[name]}: choose one of {', '.join(choices)}")
    for name in ("count", "batch_size", "seed_ranges"):
        if config[name] < 1:
            raise ValueError(f"{name}={config[name]}: expected at least 1")
    if config.classes is not None and not (OmegaConf.is_list(config.classes) and len(config.classes)):
        raise ValueError(f"classes={config.classes}: expected a list such as [3,7], or null")


def _finish(writer: SampleWriter, images: Tensor, seeds: range, device: torch.device) -> Path | None:
    """What the first process writes of all samples, and where they are; ``images`` are this process's share of them."""
    every_image = gather_rows(images, device) if writer.format != "png" else images
    return writer.finish(every_image, seeds) if rank_and_count()[0] == 0 else None


def _with_results(ranges: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The values of the first range of seeds by name, the least of several, and the records of all."""
    least = least_of(ranges) if len(ranges) > 1 else []
    records = [record for records in ranges for record in records]
    print_results(records + least)
    return {record["name"]: record["value"] for record in ranges[0] + least} | {"results": records + least}


def _evaluate_files(config: DictConfig, parts: DictConfig, device: torch.device) -> dict[str, Any]:
    """Evaluate samples that are there already."""
    if not config.get("metrics"):
        raise ValueError(f"images={config.images}: say what to measure of them, such as metrics=[fid]")
    evaluator = _evaluator(config, parts, device)
    assert evaluator is not None
    files = open_samples(config.images)
    evaluator.check_samples(files.count)
    records = evaluator.results(evaluator(files.batches()), files.count, files.seeds, None)
    return {"images": config.images, "count": files.count} | _with_results([records])


def _parts(config: DictConfig) -> DictConfig:
    """The teacher, sampler, data and features: those given here, else those of the run."""
    names = ("teacher", "sampler", "data", "features")
    parts = OmegaConf.create({name: config.get(name) for name in names})
    if config.run is None:
        return parts
    saved = Path(config.run) / "config.yaml"
    if not saved.is_file():
        raise ValueError(
            f"run={config.run}: no config.yaml there; give the folder of a run, which train.py names at its end"
        )
    of_run = OmegaConf.load(saved)
    for name in names:
        if parts[name] is None:
            part = OmegaConf.select(of_run, name)
            _refuse_foreign_code(part, saved)
            parts[name] = part
    return parts


def _refuse_foreign_code(node: Any, saved: Path) -> None:
    """A run's folder may come from anyone: what its config names is built only if it is of this package."""
    plain = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    if isinstance(plain, dict):
        if "_target_" in plain and not _is_part(plain["_target_"]):
            raise ValueError(
                f"{saved} asks to run {plain['_target_']!r}, which is no part of this package: give that part yourself"
            )
        if "_target_" in plain and _runs_a_file(plain):
            raise ValueError(
                f"{saved} asks to run the program {plain.get('path', plain.get('weights'))!r}, whose hash is not the "
                "published network's: if you trust it, give that part yourself, such as features=inception"
            )
        for value in plain.values():
            _refuse_foreign_code(value, saved)
    elif isinstance(plain, list):
        for value in plain:
            _refuse_foreign_code(value, saved)
    elif isinstance(plain, str) and "${" in plain:  # train.py writes none, and one can become any of the above
        raise ValueError(f"{saved} has an interpolation, {plain!r}, where a run's config has values: give that part")


def _runs_a_file(part: dict[Any, Any]) -> bool:
    """Whether building a ``part`` would run a file that is not NVIDIA's published network, or let pickle read one."""
    target = get_object(part["_target_"])
    if not isinstance(target, type):
        return False
    if issubclass(target, InceptionFeatures):
        return part.get("sha256") != PUBLISHED_SHA256
    return issubclass(target, TorchFidelityFeatures) and part.get("weights") is not None


def _is_part(target: Any) -> bool:
    """Whether ``target`` is defined where such parts live; 'onestep.config.os.system' only goes by way of it."""
    if not str(target).startswith("onestep."):
        return False
    try:
        defined_in = get_object(target).__module__
    except Exception:
        return False
    return str(defined_in).startswith(_PARTS_LIVE_IN)


def _model(config: DictConfig, parts: DictConfig, device: torch.device) -> tuple[Draw, DenoiserNetwork, int]:
    """What draws, the network it draws with, and how often it evaluates that for an image."""
    if config.model == "teacher":
        if parts.teacher is None or parts.sampler is None:
            raise ValueError("model=teacher needs run=..., or teacher=... and sampler=...")
        teacher: DenoiserNetwork = instantiate(parts.teacher).to(device)
        sampler: Sampler = instantiate(parts.sampler)
        return partial(sampler, teacher), teacher, sampler.network_evaluations * teacher.network_evaluations
    if (config.run is None) == (config.checkpoint is None):
        raise ValueError("give either run=... (a run's folder) or checkpoint=... (a generator's folder or file)")
    place = config.checkpoint if config.run is None else Path(config.run) / WEIGHTS[config.weights]
    generator = load_generator(place, config.sigma_init).to(device)
    return generator, generator.denoiser, generator.network_evaluations


def _data(config: DictConfig, parts: DictConfig, network: DenoiserNetwork) -> ImageDataset | None:
    """The prompts that a text-to-image network draws of, or what decodes latents; None where images are drawn."""
    if not getattr(network, "condition_keys", ()):
        if config.prompts is not None:
            raise ValueError("prompts=...: this network takes none")
        if describes_latents(parts.data):
            return instantiate(parts.data)
        channels, height, width = network.image_shape
        if channels not in (1, 3) and height * width > 1:  # one pixel is a point
            raise ValueError(
                f"these samples are latents of {channels} channels, and nothing decodes them: give data=latents with "
                "data.images.path=... and data.model=..., the pipeline with the autoencoder"
            )
        return None
    if parts.data is None:
        raise ValueError("a text-to-image network needs run=..., or data=prompts with data.path=... and data.model=...")
    if config.prompts is not None:
        parts.data.path, parts.data.image_column = config.prompts, None
    data: ImageDataset = instantiate(parts.data)
    guide(network, data, network.guidance)
    return data


def _evaluator(config: DictConfig, parts: DictConfig, device: torch.device) -> Evaluator | None:
    if not config.get("metrics"):
        return None
    data: ImageDataset | None = None if config.reference is not None else instantiate(parts.data)
    data = None if data is None else data.real
    evaluator = build_evaluator(config, parts.features, data, device)
    if config.save_reference is not None:
        evaluator.save_reference(config.save_reference)
    return evaluator

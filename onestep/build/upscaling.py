"""The command ``upscale``, built from its configuration and a student of super-resolution."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from omegaconf import DictConfig
from rich.console import Console

from onestep.build.processes import separate_processes
from onestep.denoiser import keys_of_data
from onestep.engine.launch import check_launch
from onestep.evaluation.sample import generator_folder
from onestep.files import hash_tensors
from onestep.models.base import DenoiserNetwork
from onestep.models.edm.layers import GLOBAL
from onestep.models.generator import read_generator_record
from onestep.models.loading import generator_path, load_generator
from onestep.precision import allow_tf32, choose_precision
from onestep.processes import process_rows
from onestep.seeding import check_classes, one_hot
from onestep.upscaling.files import find_images, plan, unfinished, upscale_files
from onestep.upscaling.tiles import Tiling
from onestep.upscaling.upscaler import Upscaler


@separate_processes()
def upscale(config: DictConfig) -> dict[str, Any]:
    """Upscale the photographs ``config.images`` into ``config.output``.

    Returns:
        The printed result: the numbers of pictures that were written, and of those that were there.

    Raises:
        ValueError: for missing photographs, a student of another kind, results that would overwrite what is no result
            of theirs; and at the end, for photographs that could not be read.
    """
    for name, value in (("IMAGES", config.images), ("checkpoint=...", config.checkpoint), ("-o OUT", config.output)):
        if not value:
            raise ValueError(f"expected {name}: onestep upscale IMAGES... -o OUT")
    check_launch()
    precision = choose_precision(config.precision, config.device)
    allow_tf32(config.tf32)
    images, others = find_images(config.images)
    folders = [path for path in map(Path, config.images) if path.is_dir()]
    jobs = plan(images, folders, Path(config.output), config.format, config.compare)
    folder = _folder(config)
    student_factor = read_generator_record(folder).upscale_factor
    if student_factor is None:
        raise ValueError(
            f"checkpoint={config.checkpoint}: its generator.json has no upscale_factor; expected a student of "
            "super-resolution, which a training on data=paired makes"
        )
    factor = student_factor if config.factor is None else config.factor
    accelerator = Accelerator(mixed_precision=precision, cpu=config.device == "cpu")
    generator = load_generator(folder).to(accelerator.device)
    _check_student(generator.denoiser, config)
    tiling = _tiling(generator.denoiser, config)
    label_dim = generator.denoiser.label_dim
    upscaler = Upscaler(
        generator,
        generator.denoiser.image_shape[0],
        student_factor,
        tiling,
        config.batch_size,
        config.seed,
        config.color,
        accelerator,
        one_hot(config.label, label_dim) if label_dim else None,
    )
    description = (
        f"weights={hash_tensors(generator.state_dict())[:16]} factor={factor:g} seed={config.seed} tile={tiling.size} "
        f"overlap={tiling.overlap} context={tiling.context} "
        f"color={config.color} label={config.label} precision={precision}"
    )
    left = unfinished(jobs, description, config.compare, config.overwrite)
    own = [left[row] for row in process_rows(len(left))]
    failed = upscale_files(own, upscaler, factor, description, config.compare)
    result = {"written": len(own) - len(failed), "kept": len(jobs) - len(left), "output": config.output}
    if others:
        names = ", ".join(file.name for file in others[:5]) + (", ..." if len(others) > 5 else "")
        result["left out"] = f"{len(others)} files without the suffix of a photograph: {names}"
    if accelerator.is_main_process:
        Console().print(result, soft_wrap=True)
    if failed:
        named = "; ".join(f"{image}: {reason}" for image, reason in failed.items())
        raise ValueError(f"{len(failed)} of {len(jobs)} photographs could not be upscaled: {named}")
    return result


def _folder(config: DictConfig) -> Path:
    """The generator's folder, of a run that of its weights."""
    path = Path(config.checkpoint)
    if (path / "generator").is_dir():
        return generator_folder(path, config.weights)
    if config.weights is not None:
        raise ValueError(f"weights={config.weights}: they are those of a run, and checkpoint={path} is none")
    return generator_path(config.checkpoint)


def _check_student(network: DenoiserNetwork, config: DictConfig) -> None:
    """Check that the network takes pictures to upscale, and the class of the configuration."""
    if network.image_shape[0] not in (1, 3) or network.denoises_latents:
        raise ValueError(f"checkpoint={config.checkpoint}: its samples are latents, not pictures of 1 or 3 channels")
    if keys_of_data(network) != ["image"]:
        taken = ", ".join(network.condition_keys) or "no condition"
        raise ValueError(f"checkpoint={config.checkpoint}: its network takes {taken}, expected image")
    if network.label_dim and config.label is None:
        raise ValueError(f"label=null: this student has {network.label_dim} classes: set that of the photographs")
    if config.label is not None:
        check_classes([config.label], network.label_dim)


def _tiling(network: DenoiserNetwork, config: DictConfig) -> Tiling:
    """The tiles of the configuration.

    A network that reads whole pictures sees the size of its training by default. Another one sees its surroundings
    besides, and larger tiles, of which these are a smaller part.
    """
    side = network.image_shape[1]
    local = network.feature_shapes and not _reads_whole(network)
    tile = (4 * side if local else side) if config.tile is None else config.tile
    if not network.feature_shapes and (tile != side or config.context):
        raise ValueError(
            f"tile={config.tile}, context={config.context}: this network takes pictures of {side} x {side} alone: set "
            "both to null"
        )
    unit = side // network.feature_shapes[-1][1] if network.feature_shapes else 1
    overlap = min(max(unit, side // 4 // unit * unit), tile // 2 // unit * unit)
    context = side // 2 // unit * unit if local else 0
    given = (config.overlap, overlap), (config.context, context)
    chosen, beyond = (default if value is None else value for value, default in given)
    return Tiling(tile, chosen, unit, beyond)


def _reads_whole(network: DenoiserNetwork) -> bool:
    """True if a layer reads the whole picture: its size in the training is then the best one."""
    return any(isinstance(module, GLOBAL) for module in network.modules())

"""Export of a finished run's generator as a diffusers pipeline with a model card, or of its scene as meshes."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from onestep.denoiser import beyond_labels
from onestep.engine.records import read_record, select
from onestep.evaluation.sample import generator_folder, weights_of
from onestep.export.model_card import write_card
from onestep.export.pipeline import OneStepPipeline
from onestep.files import atomic_folder
from onestep.models.diffusers.autoencoder import Autoencoder
from onestep.models.diffusers.export import save_text_to_image
from onestep.models.diffusers.folder import autoencoder_folder
from onestep.models.diffusers.prepared import find_pipeline
from onestep.models.generator import Generator
from onestep.models.scene.coloured import holds_coloured_scene
from onestep.models.scene.generator import holds_any_scene, load_any_scene, solids_of
from onestep.models.scene.mesh import save_solids


def export(run: str | Path, output: str | Path, weights: str | None = None) -> Path:
    """Write the generator of the finished ``run`` as a diffusers pipeline with its model card into ``output``.

    For text-to-image it is the teacher's pipeline, which plain diffusers loads; otherwise a :class:`OneStepPipeline`. A
    scene is no network of a pipeline: it is written with the densities and meshes of all its objects, see
    :func:`onestep.models.scene.mesh.save_solids`.

    Args:
        run: the run's folder.
        output: the folder to write, new or empty.
        weights: the name of an average of the run, such as "ema", or "raw" for the last iterate; None for those that
            the run reports.

    Returns:
        ``output``.

    Raises:
        ValueError: for an unknown choice, a ``run`` that is not finished, or an ``output`` that is not empty or
            cannot be written.
    """
    run, output = Path(run), Path(output)
    for name in ("config.yaml", "summary.json"):
        if not (run / name).is_file():
            raise ValueError(f"{run} has no {name}: expected the folder of a finished run")
    check_output(output)
    try:
        with atomic_folder(output) as temporary:
            _write(run, weights, temporary)
    except (OSError, SafetensorError) as error:  # what is read raises ValueError
        raise ValueError(f"{output} could not be written, and nothing of it is left: {error}") from error
    return output


def check_output(output: Path) -> None:
    """Check that ``output`` is a new or an empty folder.

    Raises:
        ValueError: if it is anything else.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output} already exists: give a new folder")


def _write(run: Path, weights: str | None, output: Path) -> None:
    record = read_record(run)
    weights = weights or weights_of(record)[0]
    if holds_any_scene(folder := generator_folder(run, weights)):
        student = load_any_scene(folder)
        student.save_pretrained(output)
        scene = solids_of(student)
        save_solids(scene, output, meshes=range(len(scene.logits)))
        return
    if holds_coloured_scene(folder):
        raise ValueError(
            f"{run}: its student is a coloured scene, which is no network of a pipeline: use the folder {folder} with "
            "onestep.ColouredScene.from_pretrained, or density.npz"
        )
    generator = Generator.from_pretrained(folder)
    if "image" in generator.denoiser.condition_keys:
        raise ValueError(
            f"{run}: its generator takes an image as its condition, which no pipeline has a place for: use the folder "
            f"{generator_folder(run, weights)} with onestep.Generator.from_pretrained"
        )
    if text_to_image := bool(beyond_labels(generator.denoiser.condition_keys)):
        folder, variant = _teacher_pipeline(record)
        usage = save_text_to_image(generator, folder, output, variant)
    else:
        latent = generator.denoiser.denoises_latents or select(record, "data.pipeline") is not None
        vae = _autoencoder(record).vae if latent else None
        OneStepPipeline.from_generator(generator, vae).save_pretrained(output)
        usage = _usage(output, generator)
    write_card(run, output, generator, weights, usage, text_to_image)


def _teacher_pipeline(record: dict[str, Any]) -> tuple[Path, str | None]:
    """The folder of the teacher's pipeline, as the run read it, and the variant of its weights."""
    options = _pipeline_options(record)
    names = ("path", "revision", "variant", "config", "lora", "cache")
    where = {name: options[name] for name in names} | {"local_files_only": bool(options["local_files_only"])}
    return find_pipeline(**where), options["variant"]


def _autoencoder(record: dict[str, Any]) -> Autoencoder:
    """The autoencoder of the teacher's latents, as the run read it."""
    options = _pipeline_options(record)
    if (changes := options["vae_config"]) is None:
        return Autoencoder.from_pretrained(*_teacher_pipeline(record))
    variant = options["variant"]
    folder = autoencoder_folder(options["path"], bool(options["local_files_only"]), options["revision"], variant)
    return Autoencoder.from_pretrained(folder, variant, changes)


def _pipeline_options(record: dict[str, Any]) -> dict[str, Any]:
    found = select(record, "teacher.pipeline") or select(record, "data.pipeline")
    options = found if isinstance(found, dict) else {}
    texts = ("path", "variant", "revision", "config", "lora", "cache")
    names = dict.fromkeys(texts, str) | {"vae_config": dict}
    values = {name: options.get(name) for name in (*names, "local_files_only")}
    complete = None not in (values["path"], values["cache"])
    if not complete or not all(isinstance(values[name], kind | None) for name, kind in names.items()):
        raise ValueError(
            "the run's config.yaml has no teacher.pipeline.path with its cache: expected the pipeline of its teacher"
        )
    return values


def _usage(output: Path, generator: Generator) -> str:
    first = list(generator.classes or range(generator.denoiser.label_dim))[:2]
    classes = f", classes={first}" if first else ""
    return (
        "from onestep.export.pipeline import OneStepPipeline\n\n"
        f'pipeline = OneStepPipeline.from_pretrained("{output.name}")  # this folder, or its id on the hub\n'
        f"images = pipeline(seeds=[0, 1, 2, 3]{classes}).images  # the images of onestep sample for these seeds"
    )

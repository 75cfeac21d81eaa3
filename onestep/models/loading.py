"""Teachers and generators from checkpoints: folders of this package, or files of EDM's format."""

from pathlib import Path
from typing import Any

from onestep.assets import ASSETS
from onestep.models.base import DenoiserNetwork
from onestep.models.describe import describe, is_safetensors
from onestep.models.edm.checkpoint import load_edm
from onestep.models.generator import Generator, StepLevels, load_denoiser
from onestep.models.guidance import GuidanceRule
from onestep.ranges import Fraction, Guidance, NonNegative, PathText, checked
from onestep.reading import read_json

#: The folder of the bundled generators.
BUNDLED = ASSETS / "generators"


@checked
def load_teacher(
    path: PathText,
    guidance: Guidance = 1.0,
    pipeline: Any = None,
    guidance_rescale: Fraction = 0.0,
    guidance_interval: tuple[NonNegative, NonNegative] | None = None,
) -> DenoiserNetwork:
    """A frozen teacher in eval mode.

    Args:
        path: a folder with ``config.json`` and safetensors weights, such as ``<run>/teacher`` of a pretraining; a file
            of EDM's format, see :func:`onestep.models.edm.checkpoint.load_edm`; or the name of a bundled teacher:
            "digits", "fashion".
        guidance: scale of classifier-free guidance; 1 for none.
        pipeline: the autoencoder of a network of latents, a
            :class:`onestep.models.diffusers.pipeline.TeacherPipeline`; None for none.
        guidance_rescale, guidance_interval: see :class:`onestep.models.guidance.GuidanceRule`.

    Raises:
        ValueError: if the checkpoint is absent or unreadable, its weights do not fit its config, or the network
            does not support guidance.
    """
    bundled = {folder.parent.name: folder.parent for folder in ASSETS.glob("*/config.json")}
    place = bundled.get(path, Path(path))
    if not place.is_file() and not (place / "config.json").is_file():
        raise ValueError(
            f"no teacher at {path!r}: expected a folder with config.json and safetensors weights, a file of EDM's "
            f"format, or the name of a bundled teacher: {', '.join(sorted(bundled)) or 'none is bundled'}; "
            f"{describe(place)}"
        )
    network = load_edm(place) if place.is_file() else load_denoiser(place)
    network.pipeline = pipeline
    return network.requires_grad_(False).set_guidance(guidance, rule=GuidanceRule(guidance_rescale, guidance_interval))


def load_generator(path: str | Path, sigma_init: float | None = None) -> Generator:
    """A generator in eval mode.

    Args:
        path: a generator's folder; the folder of an exported pipeline; a one-step generator's file of EDM's format, as
            SiD, SiDA, Uni-Instruct and DMD2 publish it; or the name of a bundled generator: "emoji", "fashion",
            "photographs".
        sigma_init: noise level of the first step, in data units. A file needs it; a folder contains it.

    Raises:
        ValueError: if the generator is absent, a file has no ``sigma_init``, or the folder has another one.
    """
    path = generator_path(path)
    if path.is_file():
        if is_safetensors(path):
            raise ValueError(f"no generator at {str(path)!r}: {describe(path)}")
        if sigma_init is None:
            raise ValueError(
                f"{path} does not contain the noise level of its generator: set sigma_init=..., which is 2.5 for SiD, "
                "SiDA and Uni-Instruct, and 80 for DMD2"
            )
        return Generator(load_edm(path), sigma_init).eval()
    is_pipeline = (path / "model_index.json").is_file()
    generator = _of_pipeline(path) if is_pipeline else Generator.from_pretrained(path)
    if sigma_init not in (None, generator.sigma_init):
        raise ValueError(f"{path} holds a generator for sigma_init={generator.sigma_init}, not {sigma_init}")
    return generator


def generator_path(path: str | Path) -> Path:
    """The folder of a bundled generator for its name, else ``path``."""
    bundled = {file.parent.name: file.parent for file in BUNDLED.glob("*/config.json")}
    return bundled.get(str(path), Path(path))


def _of_pipeline(folder: Path) -> Generator:
    try:
        levels = read_json(folder / "model_index.json", StepLevels)
    except ValueError as error:
        raise ValueError(f"no one-step pipeline: {error}") from error
    return Generator(load_denoiser(folder / "denoiser"), **vars(levels)).eval()

"""Teachers from diffusers: network and noise schedule of a pipeline, as a frozen denoiser."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onestep.models.diffusers.denoiser import DiffusersDenoiser, plain_config
from onestep.models.diffusers.families import FAMILIES
from onestep.models.diffusers.folder import INDEX, SCHEDULER_CONFIG, PipelineIndex, pipeline_folder
from onestep.models.diffusers.pipeline import DTYPES, DType, TeacherPipeline
from onestep.models.diffusers.quantized import Bits, quantize_layers
from onestep.models.guidance import GuidanceRule
from onestep.models.weights import Weights, build_outline, load_network, read_config
from onestep.ranges import Fraction, Guidance, NonNegative, PathText, Side, Text, checked
from onestep.reading import read_json

_REFUSED = "pipelines that make images of prompts, and not of editing, inpainting, control or video"
_MOST_TENSORS = 2**14  # of a network without weights; FLUX.1 has 1,700


@checked
def load_diffusers(
    path: PathText,
    guidance: Guidance,
    size: Side | None,
    dtype: DType,
    variant: Text | None,
    revision: Text | None,
    local_files_only: bool,
    pipeline: TeacherPipeline | None = None,
    scheduler: PathText | None = None,
    config: PathText | None = None,
    lora: PathText | None = None,
    guidance_rescale: Fraction = 0.0,
    guidance_interval: tuple[NonNegative, NonNegative] | None = None,
    quantize: Bits | None = None,
) -> DiffusersDenoiser:
    """A frozen teacher in eval mode, from a pipeline of diffusers or one of its networks; safetensors only.

    No code next to the weights is run. Guidance by text also needs the embeddings of the empty prompt, from
    ``pipeline`` or the arguments of ``set_guidance``.

    Args:
        path: a pipeline's folder (with ``model_index.json``) or its hub id; or a network's folder (with
            ``config.json``) with the scheduler's config in it, in its ``scheduler`` folder or a sibling of that name.
        guidance: scale of classifier-free guidance, 1 for none; an input of FLUX.1-dev.
        size: height and width of the network's images or latents (a latent has about 8 by 8 pixels); None for the
            default of the network.
        dtype: dtype of the weights: "float32", "bfloat16" or "float16".
        variant: variant of the weights, such as "fp16"; None for the default.
        revision: revision of a hub id; None for the newest.
        local_files_only: if True, search the local cache alone for a hub id.
        pipeline: autoencoder and text encoders of a latent or text-to-image teacher; None for none.
        scheduler: file or folder of a scheduler's config, which has the noise schedule; None for the one that is with
            the network.
        config, lora: of a single file, and a LoRA, as in the ``pipeline``, whose cache has the folder that they become;
            see :func:`onestep.models.diffusers.prepared.find_pipeline`.
        guidance_rescale, guidance_interval: see :class:`onestep.models.guidance.GuidanceRule`.
        quantize: bits of its linear layers, see :mod:`onestep.models.diffusers.quantized`; None for their dtype.

    Raises:
        ValueError: if the path holds no supported network or pipeline.
    """
    shared = pipeline if pipeline is not None and pipeline.path == path and not _is_network(Path(path)) else None
    if (config, lora) != ((None, None) if shared is None else (shared.config, shared.lora)):
        raise ValueError(
            f"teacher.config={config}, teacher.lora={lora}: expected a pipeline as teacher.path, which is also that of "
            "teacher.pipeline"
        )
    place = path if shared is None else str(shared.folder)
    found = _find(place, scheduler, local_files_only, revision, variant)
    weights = Weights.find(found.folder, variant=variant)
    if variant not in (None, weights.variant):
        raise ValueError(f"teacher.variant={variant}: {found.folder} has no weights of it; set teacher.variant=null")
    denoiser = load_network(
        lambda: found.denoiser(size), weights.renamed(lambda name: f"network.{name}"), DTYPES[dtype]
    )
    denoiser.register_to_config(network_config=plain_config(denoiser.network.config))  # with diffusers' defaults
    denoiser.pipeline = pipeline
    if quantize is not None:
        quantize_layers(denoiser.network, quantize)
    return denoiser.requires_grad_(False).set_guidance(guidance, rule=GuidanceRule(guidance_rescale, guidance_interval))


@checked
def outline_diffusers(
    path: PathText,
    size: Side | None,
    dtype: DType,
    revision: Text | None,
    local_files_only: bool,
    scheduler: PathText | None = None,
) -> DiffusersDenoiser:
    """The teacher of :func:`load_diffusers` on the meta device, from its configs alone: weights are not read.

    Args:
        path, size, dtype, revision, local_files_only, scheduler: as for :func:`load_diffusers`.

    Raises:
        ValueError: if the path holds no configs of a supported network or pipeline.
    """
    found = _find(path, scheduler, local_files_only, revision, weights=False)
    # In place of the weights' names and shapes, which limit what a config can ask for.
    most = Weights(found.folder, (), None, {str(number): () for number in range(_MOST_TENSORS)}, {})
    denoiser = build_outline(lambda: found.denoiser(size), most)
    for parameter in denoiser.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])
    return denoiser.requires_grad_(False).eval()


def _is_network(folder: Path) -> bool:
    return (folder.expanduser() / "config.json").is_file() and not (folder.expanduser() / INDEX).is_file()


class _Found(NamedTuple):
    """The folder of a network, its class and configs; ``latent`` if its pipeline has an autoencoder."""

    folder: Path
    network_class: str
    config: dict[str, Any]
    scheduler_config: dict[str, Any]
    latent: bool

    def denoiser(self, size: int | None) -> DiffusersDenoiser:
        return DiffusersDenoiser(self.network_class, self.config, self.scheduler_config, size, latent=self.latent)


def _find(
    path: str, scheduler: str | None, local_files_only: bool, revision: str | None, variant: str | None = None,
    weights: bool = True,
) -> _Found:  # fmt: skip
    """The network at ``path``, see :func:`load_diffusers`; a download has its ``weights``, or configs alone."""
    folder, latent = Path(path).expanduser(), False
    places: tuple[Path, ...]
    if _is_network(folder):
        network_class = str(read_json(folder / "config.json", dict[str, Any]).get("_class_name"))
        if network_class not in FAMILIES:
            raise _unsupported(path, f"a network {network_class[:80]}")
        places = (folder, folder / "scheduler", folder.parent / "scheduler")
    else:
        root = pipeline_folder(path, local_files_only, revision, variant, weights)
        index = PipelineIndex.of(root)
        name, network_class = _find_network(path, index)
        folder, latent = root / name, "vae" in index.components
        places = (root / "scheduler",)
    config = read_config(folder / "config.json")
    scheduler_config = read_scheduler(_find_scheduler(folder, places if scheduler is None else (Path(scheduler),)))
    return _Found(folder, network_class, config, scheduler_config, latent)


def read_scheduler(path: Path) -> dict[str, Any]:
    """The config of a scheduler with its ``_class_name``, within limits, see :func:`read_config`."""
    return read_config(path) | {"_class_name": read_json(path, dict[str, Any]).get("_class_name")}


def _find_network(path: str, index: PipelineIndex) -> tuple[str, str]:
    """The folder and the class of a pipeline's denoising network."""
    for name, network_class in index.components.items():
        if network_class in FAMILIES:
            pipelines = FAMILIES[network_class].pipelines
            if pipelines and index.kind not in pipelines:
                raise ValueError(
                    f"{path!r} holds a {index.kind}, which is not supported: of a {network_class}, expected a "
                    f"{' or '.join(pipelines)} ({_REFUSED})"
                )
            return name, network_class
    raise _unsupported(path, f"a {index.kind} of {', '.join(sorted(index.components.values()))}")


def _unsupported(path: str, found: str) -> ValueError:
    return ValueError(
        f"{path!r} holds {found}, which is not supported: expected a pipeline with a {', '.join(FAMILIES)} "
        f"({_REFUSED}); CONTRIBUTING.md, 'A new family of teachers', shows how to add one"
    )


def _find_scheduler(network: Path, places: Sequence[Path]) -> Path:
    for place in places:
        for file in (place, place / SCHEDULER_CONFIG):
            if file.is_file():
                return file
    raise ValueError(
        f"the network at {str(network)!r} lacks its scheduler, which has the noise schedule: expected "
        f"{SCHEDULER_CONFIG} in {' or '.join(map(repr, map(str, places)))}, or teacher.scheduler=FILE with that of a "
        "pipeline that it was trained from"
    )

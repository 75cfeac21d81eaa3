"""Teachers from diffusers: network and noise schedule of a pipeline, as a frozen denoiser."""

from pathlib import Path
from typing import Any

import diffusers
from diffusers import DDPMScheduler, DiffusionPipeline

from onestep.models.diffusers.denoiser import DiffusersDenoiser
from onestep.models.diffusers.families import FAMILIES
from onestep.models.diffusers.pipeline import DTYPES, TeacherPipeline
from onestep.models.diffusers.schedule import build_scheduler

_INDEX = "model_index.json"
_SCHEDULER = "scheduler_config.json"


def load_diffusers(
    path: str,
    guidance: float,
    size: int | None,
    dtype: str,
    variant: str | None,
    revision: str | None,
    local_files_only: bool,
    pipeline: TeacherPipeline | None = None,
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

    Raises:
        ValueError: if the path holds no supported network or pipeline.
    """
    if dtype not in DTYPES:
        raise ValueError(f"teacher.dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    options = {"revision": revision, "local_files_only": local_files_only}
    folder = Path(path)
    try:
        # Every scheduler class reads a config in the same way.
        if (folder / "config.json").is_file() and not (folder / _INDEX).is_file():
            network_class = str(DiffusersDenoiser.load_config(path).get("_class_name"))
            if network_class not in FAMILIES:
                raise _unsupported(path, f"a network {network_class}")
            subfolder, latent, scheduler = None, False, DDPMScheduler.load_config(_scheduler_folder(folder))
        else:
            index = DiffusionPipeline.load_config(path, **options)
            network_class, subfolder = _find_network(path, index)
            latent = bool((index.get("vae") or [None])[0])
            scheduler = DDPMScheduler.load_config(path, subfolder="scheduler", **options)
        network, report = getattr(diffusers, network_class).from_pretrained(
            path,
            subfolder=subfolder,
            torch_dtype=DTYPES[dtype],
            variant=variant,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(
            f"no teacher could be read from {path!r}: expected a folder or hub id of a diffusers pipeline, with its "
            f"weights as safetensors. {error}"
        ) from error
    # diffusers silently initialises missing weights at random.
    if problems := {kind: keys for kind, keys in report.items() if keys}:
        raise ValueError(f"the weights at {path!r} do not fit their config: {problems}")
    denoiser = DiffusersDenoiser.wrap(network, build_scheduler(scheduler), size)
    denoiser.register_to_config(latent=latent)
    denoiser.pipeline = pipeline
    return denoiser.requires_grad_(False).eval().set_guidance(guidance)


def _find_network(path: str, index: dict[str, Any]) -> tuple[str, str]:
    """The class and the folder of a pipeline's denoising network."""
    components = {name: str(entry[1]) for name, entry in index.items() if isinstance(entry, list | tuple) and entry[1:]}
    for name, network_class in components.items():
        if network_class in FAMILIES:
            return network_class, name
    raise _unsupported(path, f"a {index.get('_class_name')} of {', '.join(sorted(components.values()))}")


def _unsupported(path: str, found: str) -> ValueError:
    return ValueError(
        f"{path!r} holds {found}, which is not supported: expected a pipeline with a {', '.join(FAMILIES)}"
    )


def _scheduler_folder(folder: Path) -> Path:
    places = (folder, folder / "scheduler", folder.parent / "scheduler")
    for place in places:
        if (place / _SCHEDULER).is_file():
            return place
    raise ValueError(
        f"the network at {str(folder)!r} lacks its scheduler, which has the noise schedule: expected {_SCHEDULER} in "
        f"{' or '.join(map(repr, map(str, places)))}"
    )

"""Text encoders and autoencoder of a latent or text-to-image pipeline of diffusers."""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

_INDEX = "model_index.json"


def pipeline_folder(path: str, local_files_only: bool = False, revision: str | None = None) -> Path:
    """The folder of the pipeline at ``path``, or the download of a hub id (neither ``.bin`` files nor code).

    Raises:
        ValueError: if there is no pipeline.
    """
    if (Path(path) / _INDEX).is_file():
        return Path(path)
    from diffusers import DiffusionPipeline

    try:
        options = {"local_files_only": local_files_only, "revision": revision}
        return Path(DiffusionPipeline.download(path, use_safetensors=True, **options))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no pipeline of diffusers at {path!r}: expected a folder with {_INDEX}, or a hub id. {error}"
        ) from error


def require_text_libraries() -> None:
    """Raise a ValueError if the package transformers is missing."""
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("text encoders need the package transformers: pip install 'onestep[text]'")


class TextEncoder:
    """Encodes prompts to the condition of a text-to-image network, by the pipeline's ``encode_prompt``.

    It supports Stable Diffusion 1.5 and 2.x (CLIP), SDXL (two encoders and the image sizes), SD3 (three encoders) and
    Flux (CLIP and T5). It does not load the pipeline's network.

    Args:
        folder: the pipeline's folder.
        device, dtype: device and dtype of the encoders.

    Raises:
        ValueError: for another class of pipeline, or if the package transformers is missing.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        require_text_libraries()
        index = json.loads((folder / _INDEX).read_text())
        self.kind = index["_class_name"]
        if self.kind not in _ENCODE:
            raise ValueError(
                f"{folder}: prompts for a {self.kind} are not supported, expected one of {', '.join(_ENCODE)}"
            )
        self.folder, self.device = folder, torch.device(device)
        self.pipeline = _load_without_network(folder, index, dtype)
        for name in self.encoders(index):
            getattr(self.pipeline, name).to(self.device)

    @staticmethod
    def encoders(index: dict[str, Any]) -> list[str]:
        """The names of the text encoders in a pipeline's index."""
        return [name for name, entry in index.items() if name.startswith("text_encoder") and entry[0] is not None]

    @staticmethod
    def files(folder: Path) -> list[Path]:
        """The files that the embeddings of the pipeline in ``folder`` depend on, in a fixed order."""
        folders = [path for path in folder.iterdir() if path.name.startswith(("text_encoder", "tokenizer"))]
        return sorted(path for folder in folders for path in folder.iterdir() if path.is_file())

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The condition of ``prompts``: tensors [N, ...] on the CPU, with the names of the network's arguments.

        ``image_size`` is the height and width of the images in pixels, an input of SDXL.
        """
        condition = _ENCODE[self.kind](self.pipeline, list(prompts), self.device)
        if self.kind == "StableDiffusionXLPipeline":
            sizes = torch.tensor([*image_size, 0, 0, *image_size], dtype=torch.float32)  # original, crop, target
            condition["time_ids"] = sizes.repeat(len(prompts), 1)
        return {name: tensor.cpu().contiguous() for name, tensor in condition.items()}

    def empty(self, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The pipeline's condition [1, ...] of the empty prompt, for guidance."""
        condition = self([""], image_size)
        if self.pipeline.config.get("force_zeros_for_empty_prompt"):  # SDXL
            zeros = {name: torch.zeros_like(condition[name]) for name in ("encoder_hidden_states", "text_embeds")}
            condition |= zeros
        return condition


def _load_without_network(folder: Path, index: dict[str, Any], dtype: torch.dtype) -> Any:
    """The pipeline with its network's config but not its weights, and without autoencoder and safety checker."""
    import diffusers

    replaced: dict[str, Any] = {"vae": None, "torch_dtype": dtype}
    for name in ("unet", "transformer"):
        if name in index:
            network_class = getattr(diffusers, index[name][1])
            with init_empty_weights():
                replaced[name] = network_class.from_config(network_class.load_config(folder, subfolder=name))
    if "safety_checker" in index:
        replaced |= {"safety_checker": None, "requires_safety_checker": False}
    with quiet():
        return diffusers.DiffusionPipeline.from_pretrained(str(folder), use_safetensors=True, **replaced)


@contextmanager
def quiet() -> Iterator[None]:
    """Disable diffusers' progress bars and warnings."""
    from diffusers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _encode_sd(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _ = pipeline.encode_prompt(prompts, device, 1, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": embeds}


def _encode_sdxl(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipeline.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": embeds, "text_embeds": pooled}


def _encode_sd3(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, device, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


def _encode_flux(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, pooled, _ = pipeline.encode_prompt(prompts, None, device)
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


_ENCODE = {
    "StableDiffusionPipeline": _encode_sd,
    "StableDiffusionXLPipeline": _encode_sdxl,
    "StableDiffusion3Pipeline": _encode_sd3,
    "FluxPipeline": _encode_flux,
}


class Autoencoder(nn.Module):
    """Encodes images in [-1, 1] to the latents of a network, and decodes them.

    It supports ``AutoencoderKL``, by the mean of its posterior, and ``AutoencoderTiny``. Shift and scale are those of
    their pipelines: ``latents = (encoded - shift_factor) * scaling_factor``.

    Args:
        vae: the autoencoder of diffusers.

    Raises:
        ValueError: for another class of autoencoder.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        kind = type(vae).__name__
        if kind not in ("AutoencoderKL", "AutoencoderTiny"):
            raise ValueError(
                f"an autoencoder of class {kind} is not supported: expected AutoencoderKL or AutoencoderTiny"
            )
        self.vae = vae.eval().requires_grad_(False)
        self.scale: float = vae.config.scaling_factor
        self.shift: float = vae.config.get("shift_factor") or 0.0
        self.channels: int = vae.config.latent_channels

    @classmethod
    def from_pretrained(cls, folder: Path) -> "Autoencoder":
        """The autoencoder of the pipeline in ``folder``.

        Raises:
            ValueError: if it has none, or one that is not supported.
        """
        import diffusers

        entry = json.loads((folder / _INDEX).read_text()).get("vae") or [None, None]
        if entry[1] not in ("AutoencoderKL", "AutoencoderTiny"):
            raise ValueError(f"{folder}: expected an AutoencoderKL or AutoencoderTiny as its vae, found {entry[1]}")
        with quiet():
            vae = getattr(diffusers, entry[1]).from_pretrained(str(folder), subfolder="vae", use_safetensors=True)
        return cls(vae)

    @staticmethod
    def files(folder: Path) -> list[Path]:
        """The files that the latents of the pipeline in ``folder`` depend on, in a fixed order."""
        return sorted(path for path in (folder / "vae").iterdir() if path.is_file())

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel, in each direction."""
        blocks = self.vae.config.get("block_out_channels") or self.vae.config["encoder_block_out_channels"]
        return 2 ** (len(blocks) - 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents [B, c, h, w] of images [B, 3, H, W] in [-1, 1]."""
        encoded = self.vae.encode(images.to(self.vae.dtype))
        latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        return (latents.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in about [-1, 1], float32, of latents [B, c, h, w]."""
        return self.vae.decode((latents / self.scale + self.shift).to(self.vae.dtype)).sample.float()

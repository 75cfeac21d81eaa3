"""The autoencoder of a latent or text-to-image pipeline of diffusers."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onestep.models.diffusers.folder import INDEX, PipelineIndex, part_files, quiet
from onestep.models.weights import DIFFUSERS_BASE, Weights, load_network, read_config

_AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
#: Names of an attention's layers in autoencoders that diffusers saved before version 0.12.
_OLD_LAYERS = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


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
        if kind not in _AUTOENCODERS:
            raise ValueError(
                f"an autoencoder of class {kind} is not supported: expected AutoencoderKL or AutoencoderTiny"
            )
        self.vae = vae.eval().requires_grad_(False)
        self.scale: float = vae.config.scaling_factor
        self.shift: float = vae.config.get("shift_factor") or 0.0
        self.channels: int = vae.config.latent_channels
        if not (0 < self.scale < math.inf and math.isfinite(self.shift)):
            raise ValueError(
                f"an autoencoder with scaling_factor={self.scale}, shift_factor={self.shift}: expected a positive and "
                "a finite number"
            )

    @classmethod
    def from_pretrained(cls, folder: Path, variant: str | None = None) -> "Autoencoder":
        """The autoencoder of the pipeline in ``folder``, of the ``variant`` of its weights if it has that one.

        Raises:
            ValueError: if it has none, or one that is not supported, or whose weights do not fit its config.
        """
        import diffusers

        kind = PipelineIndex.read(folder / INDEX).components.get("vae")
        if kind not in _AUTOENCODERS:
            raise ValueError(f"{folder}: expected an AutoencoderKL or AutoencoderTiny as its vae, found {kind}")
        config = read_config(folder / "vae" / "config.json")
        weights = Weights.find(folder / "vae", DIFFUSERS_BASE, variant).renamed(_new_name)
        with quiet():
            vae = load_network(lambda: getattr(diffusers, kind).from_config(config), weights)
        return cls(vae)

    @staticmethod
    def files(folder: Path, variant: str | None = None) -> list[Path]:
        """The files that the latents of the pipeline in ``folder`` depend on, in a fixed order."""
        return part_files(folder / "vae", variant)

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


def _new_name(name: str) -> str:
    """The name of a tensor in today's autoencoders."""
    for old, new in _OLD_LAYERS.items():
        name = name.replace(old, new)
    return name

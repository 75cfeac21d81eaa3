"""The autoencoder of a latent or text-to-image pipeline of diffusers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.models.diffusers.families import diffusers_class
from onestep.models.diffusers.folder import INDEX, PipelineIndex, quiet
from onestep.models.weights import DIFFUSERS_BASE, Weights, load_network, read_config
from onestep.reading import one_line, read_json

#: Names of an attention's layers in autoencoders that diffusers saved before version 0.12.
_OLD_LAYERS = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


class Autoencoder(nn.Module):
    """Encodes images in [-1, 1] to the latents of a network, and decodes them.

    It supports ``AutoencoderKL``, by the mean of its posterior, ``AutoencoderTiny`` and Sana's ``AutoencoderDC``; the
    subclasses are of other latents, and :func:`wrap` chooses. Shift and scale are those of the pipelines:
    ``latents = (encoded - shift_factor) * scaling_factor``, or by channel ``(encoded - latents_mean) * scaling_factor /
    latents_std``. An ``image_range`` in its config has its values of black and white, else [-1, 1].

    Args:
        vae: the autoencoder of diffusers.

    Raises:
        ValueError: for a scale that is none.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        self.channels = self._channels()
        #: By channel [c, 1, 1], or of all [1, 1, 1].
        self.scale, self.shift = self._scaling()
        black, white = self._numbers("image_range", 2, [-1.0, 1.0]).flatten().tolist()
        self.middle, self.half_range = (black + white) / 2, (white - black) / 2
        if not ((self.scale > 0) & (self.scale < math.inf)).all() or not self.half_range > 0:
            raise ValueError(
                f"an autoencoder with scaling_factor={vae.config.get('scaling_factor')}, "
                f"latents_std={vae.config.get('latents_std')}, image_range={[black, white]}: expected positive numbers "
                "and black below white"
            )

    def _channels(self) -> int:
        """The number of channels of the latents."""
        return self.vae.config.latent_channels

    def _scaling(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of the latents."""
        scale = self._numbers("scaling_factor", 1) / self._numbers("latents_std", self.channels, [1.0])
        return scale, self._numbers("latents_mean", self.channels, [self.vae.config.get("shift_factor") or 0.0])

    def _encode(self, images: Tensor) -> Tensor:
        """Latents before their scaling [B, c, h, w] of images [B, 3, H, W]."""
        encoded = self.vae.encode(images)
        return encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded[0]

    def _decode(self, latents: Tensor) -> Tensor:
        """The inverse of :meth:`_encode`."""
        return self.vae.decode(latents).sample

    def _numbers(self, name: str, count: int, default: list[float] | None = None) -> Tensor:
        """The finite number, or the ``count`` numbers, ``name`` of the config, [n, 1, 1].

        Raises:
            ValueError: if they are not that.
        """
        value = self.vae.config.get(name)
        numbers = default if value is None else list(value) if isinstance(value, list | tuple) else [value]
        if numbers is None or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
            raise ValueError(f"an autoencoder with {name}={one_line(value)}: expected finite numbers")
        if len(numbers) != count and numbers is not default:
            raise ValueError(f"an autoencoder with {len(numbers)} {name}: expected {count}")
        return torch.tensor(numbers, dtype=torch.float32)[:, None, None]

    @staticmethod
    def from_pretrained(
        folder: Path, variant: str | None = None, changes: Mapping[str, Any] | None = None
    ) -> "Autoencoder":
        """The autoencoder of the pipeline in ``folder``, of the ``variant`` of its weights if it has that one.

        Args:
            folder: the folder of a pipeline; with ``changes``, that of an autoencoder alone.
            variant: variant of its weights, used if it has that one; None for the default.
            changes: values in place of those of its config.

        Raises:
            ValueError: if it has none, or one that is not supported, or whose weights do not fit its config.
        """
        place = folder / "vae" if changes is None else folder
        if changes is None:
            kind = PipelineIndex.read(folder / INDEX).components.get("vae")
        else:
            kind = read_json(place / "config.json", dict[str, Any]).get("_class_name")
        if kind not in _CLASSES:
            raise ValueError(f"{folder}: expected one of {', '.join(_CLASSES)} as its vae, found {one_line(kind, 80)}")
        config = read_config(place / "config.json") | dict(changes or {})
        weights = Weights.find(place, DIFFUSERS_BASE, variant).renamed(_new_name)
        with quiet():
            vae = load_network(lambda: diffusers_class(kind).from_config(config), weights)
        return wrap(vae)

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel, in each direction."""
        blocks = self.vae.config.get("block_out_channels") or self.vae.config["encoder_block_out_channels"]
        return 2 ** (len(blocks) - 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents [B, c, h, w] of images [B, 3, H, W] in [-1, 1]."""
        latents = self._encode((images * self.half_range + self.middle).to(self.vae.dtype))
        return (latents.float() - self.shift.to(latents.device)) * self.scale.to(latents.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in about [-1, 1], float32, of latents [B, c, h, w]."""
        encoded = latents / self.scale.to(latents.device) + self.shift.to(latents.device)
        levels = self._decode(encoded.to(self.vae.dtype)).float()
        return (levels - self.middle) / self.half_range


class FrameAutoencoder(Autoencoder):
    """Qwen-Image's autoencoder of videos: an image is one frame."""

    def _channels(self) -> int:
        return self.vae.config.z_dim

    def _scaling(self) -> tuple[Tensor, Tensor]:
        deviations, means = (self._numbers(name, self.channels) for name in ("latents_std", "latents_mean"))
        return 1 / deviations, means

    def _encode(self, images: Tensor) -> Tensor:
        return self.vae.encode(images[:, :, None]).latent_dist.mean[:, :, 0]

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents[:, :, None]).sample[:, :, 0]

    @property
    def downsampling(self) -> int:
        return 2 ** len(self.vae.config.temperal_downsample)


class PatchAutoencoder(Autoencoder):
    """FLUX.2's autoencoder: a latent pixel is two by two of its own, scaled by the statistics of its batch norm."""

    def _channels(self) -> int:
        return 4 * self.vae.config.latent_channels

    def _scaling(self) -> tuple[Tensor, Tensor]:
        norm = self.vae.bn
        scale = (norm.running_var.float() + self.vae.config.batch_norm_eps).rsqrt()
        return scale[:, None, None], norm.running_mean.float()[:, None, None]

    def _encode(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(super()._encode(images), 2)

    def _decode(self, latents: Tensor) -> Tensor:
        return super()._decode(F.pixel_shuffle(latents, 2))

    @property
    def downsampling(self) -> int:
        return 2 * super().downsampling


_CLASSES: dict[str, type[Autoencoder]] = {
    "AutoencoderKL": Autoencoder,
    "AutoencoderTiny": Autoencoder,
    "AutoencoderDC": Autoencoder,
    "AutoencoderKLQwenImage": FrameAutoencoder,
    "AutoencoderKLFlux2": PatchAutoencoder,
}


def wrap(vae: Any) -> Autoencoder:
    """An autoencoder of diffusers with its latents' layout.

    Raises:
        ValueError: for another class of autoencoder, or a scale that is none.
    """
    kind = type(vae).__name__
    if kind not in _CLASSES:
        raise ValueError(f"an autoencoder of class {kind} is not supported: expected one of {', '.join(_CLASSES)}")
    return _CLASSES[kind](vae)


def _new_name(name: str) -> str:
    """The name of a tensor in today's autoencoders."""
    for old, new in _OLD_LAYERS.items():
        name = name.replace(old, new)
    return name

"""Text encoders and autoencoder of a teacher's pipeline, with a cache of their outputs."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from accelerate import PartialState
from torch import Tensor

from onestep.cache import CachedRows, ChunkCache, fingerprint
from onestep.denoiser import Condition
from onestep.models.diffusers.autoencoder import Autoencoder
from onestep.models.diffusers.families import FAMILIES
from onestep.models.diffusers.families.base import Family
from onestep.models.diffusers.folder import PipelineIndex, autoencoder_folder, part_files
from onestep.models.diffusers.prepared import find_pipeline
from onestep.models.diffusers.text_encoder import TextEncoder
from onestep.models.weights import read_config
from onestep.ranges import BatchSize, PathText, Side, Text, checked

DType = Literal["float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FORMAT = 2  # of the cached files; a new number invalidates all older files


@checked
class TeacherPipeline:
    """Autoencoder and text encoders of a pipeline of diffusers, each loaded at its first use.

    They run on this process's device. Copies of a network share its pipeline.

    Args:
        path: the pipeline's folder or hub id.
        size: height and width of the latents; None for the default of the network.
        dtype: dtype of the text encoders and of the cached embeddings: "float32", "bfloat16" or "float16".
        batch_size: prompts or images per encoded batch, which is one file of the cache.
        cache: folder of the cached embeddings and latents; it may start with ~.
        revision: revision of a hub id; None for the newest.
        local_files_only: if True, search the local cache alone for a hub id.
        variant: variant of the weights, such as "fp16", of the components that have it; None for the default.
        vae_config: None for a pipeline. Else ``path`` is of an autoencoder alone, and these values replace those of its
            config, see :class:`onestep.models.diffusers.autoencoder.Autoencoder`.
        config, lora: of a single file, and a LoRA; see :func:`onestep.models.diffusers.prepared.find_pipeline`.

    Raises:
        ValueError: for another dtype, or a batch size below 1. Methods and properties raise it if the pipeline is
            absent or lacks the required part.
    """

    def __init__(
        self,
        path: PathText,
        size: Side | None,
        dtype: DType,
        batch_size: BatchSize,
        cache: PathText,
        revision: Text | None = None,
        local_files_only: bool = False,
        variant: str | None = None,
        vae_config: dict[str, Any] | None = None,
        config: PathText | None = None,
        lora: PathText | None = None,
    ) -> None:
        self.path, self.size, self.dtype, self.batch_size, self.cache = path, size, dtype, batch_size, cache
        self.revision, self.local_files_only, self.variant = revision, local_files_only, variant
        self.vae_config, self.config, self.lora = vae_config, config, lora

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @cached_property
    def folder(self) -> Path:
        """The pipeline's folder on this machine."""
        if self.vae_config is not None:
            return autoencoder_folder(self.path, self.local_files_only, self.revision, self.variant)
        return find_pipeline(
            self.path, self.local_files_only, self.revision, self.variant, self.config, self.lora, self.cache
        )

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder, on the CPU until its first use."""
        return Autoencoder.from_pretrained(self.folder, self.variant, self.vae_config)

    def latents_key(self, description: Mapping[str, Any], files: Sequence[Path] = ()) -> str:
        """A hash of a ``description``, of ``files``, and of all that latents by its autoencoder depend on."""
        place = self.folder / "vae" if self.vae_config is None else self.folder
        changes = {} if self.vae_config is None else {"vae_config": self.vae_config}
        return fingerprint({**description, **changes}, files=[*part_files(place, self.variant), *files])

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latents or images of the pipeline's network."""
        family, network = self._family
        return family.image_shape(read_config(self.folder / network / "config.json"), self.size)

    @cached_property
    def _family(self) -> tuple[Family, str]:
        """The family of the pipeline's network, and the network's folder."""
        for name, network_class in self._index.components.items():
            if network_class in FAMILIES:
                return FAMILIES[network_class], name
        raise ValueError(f"{self.folder}: expected a pipeline with one of the networks {', '.join(FAMILIES)}")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the decoded images."""
        _, height, width = self.latent_shape
        factor = self.autoencoder.downsampling
        return height * factor, width * factor

    def encode(self, images: Tensor) -> Tensor:
        """Latents [B, c, h, w] of images [B, 3, H, W] in [-1, 1], both on the CPU."""
        device = PartialState().device
        return self.autoencoder.to(device).encode(images.to(device)).cpu()

    def encode_images(
        self,
        read: Callable[[range], dict[str, Tensor]],
        count: int,
        cache: ChunkCache,
        dtype: torch.dtype = torch.float32,
    ) -> CachedRows:
        """The ``latents`` [N, c, h, w] of images; this encodes those that the ``cache`` lacks.

        Args:
            read: returns the ``images`` [B, 3, H, W] in [-1, 1] of a range of rows, and further tensors [B, ...], which
                the cache keeps with the latents.
            count: number of images N.
            cache: cache of the latents.
            dtype: dtype of the cached latents.
        """

        def encode(chunk: int) -> dict[str, Tensor]:
            rows = read(range(chunk * self.batch_size, min((chunk + 1) * self.batch_size, count)))
            return {"latents": self.encode(rows.pop("images")).to(dtype), **rows}

        names = [f"{chunk:06d}" for chunk in range(math.ceil(count / self.batch_size))]
        latents = CachedRows(cache, names, self.batch_size)
        latents.fill(encode, "encoding images")
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in about [-1, 1] of latents [B, c, h, w], both on the CPU.

        It decodes one image at a time, because images are much larger than their latents.
        """
        device = PartialState().device
        autoencoder = self.autoencoder.to(device)
        return torch.cat([autoencoder.decode(latent.to(device)).cpu() for latent in latents.split(1)])

    def decoder(self, channels: int) -> Callable[[Tensor], Tensor]:
        """:meth:`decode`, whose autoencoder is read at once.

        Raises:
            ValueError: if there is none, or one of latents with another number of ``channels``.
        """
        if self.autoencoder.channels != channels:
            raise ValueError(
                f"the autoencoder of {self.path} has latents of {self.autoencoder.channels} channels, and the network "
                f"those of {channels}: set teacher.pipeline.path=... to the network's own"
            )
        return self.decode

    def encode_prompts(self, prompts: Sequence[str]) -> "PromptEmbeddings":
        """The conditions of ``prompts``; this encodes those that the cache lacks. Every process must call it."""
        chunks = [prompts[start : start + self.batch_size] for start in range(0, len(prompts), self.batch_size)]
        rows = CachedRows(self._text_cache, [fingerprint({"prompts": chunk}) for chunk in chunks], self.batch_size)
        encoder = self._text_encoder()
        rows.fill(lambda chunk: self._kept(encoder()(chunks[chunk], self.image_size)), "encoding prompts")
        self._fill_unconditional(encoder)  # while the encoder is loaded
        return PromptEmbeddings(prompts, rows)

    def unconditional(self) -> Condition:
        """The condition [1, ...] of the empty prompt, for guidance. Every process must call it."""
        return self._fill_unconditional(self._text_encoder())

    def _kept(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``tensors`` in the dtype of the cache; image sizes stay in float32, which half precision would round."""
        dtype, exact = DTYPES[self.dtype], self._family[0].exact
        return {name: tensor if name in exact else tensor.to(dtype) for name, tensor in tensors.items()}

    def _fill_unconditional(self, encoder: Callable[[], TextEncoder]) -> Condition:
        rows = CachedRows(self._text_cache, ["empty"], 1)
        rows.fill(lambda _: self._kept(encoder().empty(self.image_size)), "encoding the empty prompt")
        return _floats(rows[[0]])

    def _text_encoder(self) -> Callable[[], TextEncoder]:
        """A function that loads the text encoders at its first call; they live as long as the function."""
        return cache(lambda: TextEncoder(self.folder, PartialState().device, DTYPES[self.dtype], self.variant))

    @cached_property
    def _index(self) -> PipelineIndex:
        return PipelineIndex.of(self.folder)

    @cached_property
    def _text_cache(self) -> ChunkCache:
        kind = {"class": self._index.kind, **self._index.components}
        description = {"format": _FORMAT, "dtype": self.dtype, "image_size": self.image_size, "pipeline": kind}
        key = fingerprint(description, files=TextEncoder.files(self.folder, self.variant))
        return ChunkCache(self.cache, key, "text embeddings", "teacher.pipeline.cache")


class PromptEmbeddings:
    """Conditions of ``prompts``, read from the cached ``rows`` at each access."""

    def __init__(self, prompts: Sequence[str], rows: CachedRows) -> None:
        self.prompts: Sequence[str] | None = prompts
        self._rows, self._count = rows, len(prompts)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, indices: Sequence[int]) -> Condition:
        """The conditions [len(indices), ...], in float32."""
        return _floats(self._rows[indices])

    def fingerprint(self) -> str:
        """A hash of the prompts and of their encoders."""
        return fingerprint({self._rows.cache.folder.name: self._rows.names})


def _floats(rows: Mapping[str, Tensor]) -> Condition:
    return {name: values.float() for name, values in rows.items()}

"""The latents of a dataset's images, for teachers that denoise latents of images with classes, such as DiT."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor

from onestep.cache import CachedRows, ChunkCache, fingerprint
from onestep.data.dataset import Batch, ImageDataset
from onestep.models.diffusers.pipeline_parts import Autoencoder, pipeline_folder

_FORMAT = 1  # of the cached files; another number leaves all older ones aside


class LatentDataset(ImageDataset):
    """The latents of ``images`` by the autoencoder of a pipeline, computed once and kept on disk.

    They are kept in chunks by a hash of the images and the autoencoder, so that an interrupted computation goes on
    where it stopped, and read as they are asked for.

    Args:
        images: RGB images, with classes or without.
        model: the folder or hub id of the pipeline.
        batch_size: images encoded at a time, and kept in one file.
        cache: the folder under which the latents are kept; it may start with ~.

    Raises:
        ValueError: for images of another kind or size than the autoencoder takes, a pipeline without one, or a cache
            that cannot be written.
    """

    def __init__(self, images: ImageDataset, model: str, batch_size: int, cache: str) -> None:
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be positive, got {batch_size}")
        folder = pipeline_folder(model)
        self.images, self.autoencoder = images, Autoencoder.from_pretrained(folder)
        channels, height, width = images.image_shape
        factor = self.autoencoder.downsampling
        if channels != 3 or height % factor or width % factor:
            raise ValueError(
                f"the autoencoder of {model} takes RGB images whose height and width are multiples of {factor}, and "
                f"the images are {channels}x{height}x{width}: choose others by data.images.resolution=... and "
                "data.images.channels=3"
            )
        self.image_shape = (self.autoencoder.channels, height // factor, width // factor)
        self.label_dim, self.batch_size = images.label_dim, batch_size
        description = {"format": _FORMAT, "images": images.fingerprint(), "rows": batch_size}
        self._key = fingerprint(description, files=Autoencoder.files(folder))
        chunks = ChunkCache(cache, self._key, "latents", "data.cache")
        self.rows = encode_images(self._read, len(images), batch_size, self.autoencoder, chunks)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Latents [B, c, h, w] and one-hot labels [B, classes] or None."""
        rows = self.rows[indices]
        return rows["latents"], F.one_hot(rows["labels"], self.label_dim).float() if self.label_dim else None

    @property
    def real(self) -> ImageDataset:
        """The images themselves, which decoded samples are compared with."""
        return self.images.real

    def fingerprint(self) -> str:
        return self._key

    def decode(self, samples: Tensor) -> Tensor:
        return self.autoencoder.decode_singly(samples)

    def _read(self, rows: range) -> dict[str, Tensor]:
        images, labels = self.images.__getitems__(rows)
        return {"images": images} | ({"labels": labels.argmax(1)} if isinstance(labels, Tensor) else {})


def encode_images(
    read: Callable[[range], dict[str, Tensor]],
    count: int,
    batch_size: int,
    autoencoder: Autoencoder,
    cache: ChunkCache,
    dtype: torch.dtype = torch.float32,
) -> CachedRows:
    """The ``latents`` [N, c, h, w] of images, those that the ``cache`` lacks encoded now, in chunks of ``batch_size``.

    Args:
        read: gives the ``images`` [B, 3, H, W] in [-1, 1] of a range of rows, and tensors [B, ...] under other names,
            which are kept with the latents.
        count: the number of images, N.
        dtype: of the kept latents.
    """
    device = PartialState().device

    def encode(chunk: int) -> dict[str, Tensor]:
        start = chunk * batch_size
        rows = read(range(start, min(start + batch_size, count)))
        latents = autoencoder.to(device).encode(rows.pop("images").to(device))
        return {"latents": latents.to("cpu", dtype), **rows}

    latents = CachedRows(cache, [f"{chunk:06d}" for chunk in range(math.ceil(count / batch_size))], batch_size)
    latents.fill(encode, "encoding images")
    return latents


def describes_latents(node: Mapping[str, Any] | None) -> bool:
    """Whether a part of a configuration is a :class:`LatentDataset`; nothing is imported to find out."""
    return node is not None and node.get("_target_") == f"{LatentDataset.__module__}.{LatentDataset.__name__}"

"""The latents of a dataset's images, for class-conditional latent teachers, such as DiT and EDM2."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from onestep.cache import ChunkCache
from onestep.data.dataset import ImageDataset
from onestep.denoiser import Condition
from onestep.models.diffusers.pipeline import TeacherPipeline

_FORMAT = 1  # of the cached files; a new number invalidates all older files


class LatentDataset(ImageDataset):
    """The latents of ``images`` by the autoencoder of a pipeline, computed once and cached on disk.

    The cache has chunks under a hash of the images and the autoencoder, so that an interrupted computation resumes.
    Latents are read from it at each access.

    Args:
        images: RGB images, with or without classes; also the reference of metrics.
        pipeline: the teacher's pipeline.

    Raises:
        ValueError: for images of a size that the autoencoder does not support or that are not RGB, a pipeline without
            autoencoder, or a cache that cannot be written.
    """

    def __init__(self, images: ImageDataset, pipeline: TeacherPipeline) -> None:
        self.images, self.pipeline, self.label_dim, self.copies = images, pipeline, images.label_dim, images.copies
        channels, height, width = images.image_shape
        factor = pipeline.autoencoder.downsampling
        if channels != 3 or height % factor or width % factor:
            raise ValueError(
                f"the images are {channels}x{height}x{width}: the autoencoder of {pipeline.path} expects RGB images "
                f"with height and width multiples of {factor}: set data.images.resolution=... and "
                "data.images.channels=3"
            )
        self.image_shape = (pipeline.autoencoder.channels, height // factor, width // factor)
        description = {"format": _FORMAT, "images": images.fingerprint(), "rows": pipeline.batch_size}
        self._key = pipeline.latents_key(description)
        cache = ChunkCache(pipeline.cache, self._key, "latents", "teacher.pipeline.cache")
        self.rows = pipeline.encode_images(self._read, len(images), cache)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Condition]:
        """Latents [B, c, h, w] and the condition: ``labels``, one-hot [B, classes], if there are classes."""
        rows = self.rows[indices]
        return rows["latents"], {"labels": F.one_hot(rows["labels"], self.label_dim).float()} if self.label_dim else {}

    def fingerprint(self) -> str:
        return self._key

    def _read(self, rows: range) -> dict[str, Tensor]:
        images, condition = self.images.__getitems__(rows)
        return {"images": images} | ({"labels": condition["labels"].argmax(1)} if condition else {})

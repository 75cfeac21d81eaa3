"""Prompts for a text-to-image model, with or without images; their embeddings and latents are computed once."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from onestep.cache import CachedRows, ChunkCache, fingerprint
from onestep.data.dataset import ImageDataset
from onestep.data.latents import encode_images
from onestep.images import decode_image, from_uint8
from onestep.models.diffusers.families import FAMILIES, find_family
from onestep.models.diffusers.pipeline_parts import Autoencoder, TextEncoder, pipeline_folder

_FORMAT = 1  # of the cached files; another number leaves all older ones aside
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PromptDataset(ImageDataset):
    """Prompts of a file as conditions for the text-to-image pipeline ``model``, with their images' latents if any.

    The embeddings are the pipeline's own and, like the latents, computed once and kept on disk: by a hash of what they
    depend on, in chunks, so that an interrupted computation goes on where it stopped. They are read as they are asked
    for, and never all in memory.

    Args:
        path: a .txt file with a prompt a line, a .parquet file, or a list of prompts.
        column: the prompts' column of a parquet file.
        image_column: that of the images, encoded (PNG, JPEG, ...) as bytes or as Hugging Face datasets keep them; null
            for none. An objective with a discriminator needs them.
        model: the pipeline's folder or hub id.
        size: height and width of the latents; null for what the model was made for.
        batch_size: prompts or images encoded at a time, and kept in one file.
        dtype: what the text encoders run in, and what is kept: "float32", "bfloat16" or "float16".
        cache: the folder under which they are kept; it may start with ~.

    Raises:
        ValueError: for a file that cannot be read as this, an empty one, a pipeline without text encoders or
            autoencoder, or a cache that cannot be written.
    """

    def __init__(
        self,
        path: str | list[str],
        column: str,
        image_column: str | None,
        model: str,
        size: int | None,
        batch_size: int,
        dtype: str,
        cache: str,
    ) -> None:
        if dtype not in _DTYPES:
            raise ValueError(f"data.dtype={dtype!r}: choose one of {', '.join(_DTYPES)}")
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be positive, got {batch_size}")
        self.prompts = read_prompts(path, column)
        self.label_dim = 0
        self.folder, self.cache_folder, self.batch_size, self.dtype = pipeline_folder(model), cache, batch_size, dtype
        self.autoencoder = Autoencoder.from_pretrained(self.folder)
        self.image_shape = _latent_shape(self.folder, size)
        factor = self.autoencoder.downsampling
        self.image_size = (self.image_shape[1] * factor, self.image_shape[2] * factor)
        self.text, self.unconditional = self._encode_prompts()
        self.latents = None if image_column is None else self._encode_images(path, image_column)
        self.has_images = self.latents is not None

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Latents [B, c, h, w], zeros where there are no images, and the condition: embeddings [B, ...] by name."""
        if self.latents is None:
            latents = torch.zeros(len(indices), *self.image_shape)
        else:
            latents = self.latents[indices]["latents"].float()
        return latents, {name: rows.float() for name, rows in self.text[indices].items()}

    def condition_of(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """What is drawn of each of ``seeds``: the prompts one after the other, beginning again at their end."""
        rows = self.text[[seed % len(self) for seed in seeds]]
        return {name: values.float() for name, values in rows.items()}

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of latents [B, c, h, w], both on the CPU, one at a time."""
        return self.autoencoder.decode_singly(latents)

    def fingerprint(self) -> str:
        """A hash of the prompts, the images and what encodes them."""
        caches = [self.text] if self.latents is None else [self.text, self.latents]
        return fingerprint({rows.cache.folder.name: rows.names for rows in caches})

    def _encode_prompts(self) -> tuple[CachedRows, dict[str, Tensor]]:
        """The embeddings of all prompts, and of the empty one [1, ...]."""
        dtype = _DTYPES[self.dtype]
        encoder = cache(lambda: TextEncoder(self.folder, PartialState().device, dtype))  # loaded only if it is needed
        index = json.loads((self.folder / "model_index.json").read_text())
        kind = {name: entry for name, entry in index.items() if name == "_class_name" or not name.startswith("_")}
        kept = self._cache("text embeddings", TextEncoder.files(self.folder), pipeline=kind)
        chunks = range(0, len(self), self.batch_size)
        names = [fingerprint({"prompts": self.prompts[start : start + self.batch_size]}) for start in chunks]
        text, empty = CachedRows(kept, names, self.batch_size), CachedRows(kept, ["empty"], 1)
        text.fill(
            lambda chunk: self._kept(encoder()(self._chunk(self.prompts, chunk), self.image_size)), "encoding prompts"
        )
        empty.fill(lambda _: self._kept(encoder().empty(self.image_size)), "encoding the empty prompt")
        return text, {name: values.float() for name, values in empty[[0]].items()}

    def _encode_images(self, path: str | list[str], column: str) -> CachedRows:
        images = ParquetImages(path, column)
        if len(images) != len(self):
            raise ValueError(f"{path}: {len(images)} images for {len(self)} prompts")
        files = [*Autoencoder.files(self.folder), Path(images.path)]
        kept = self._cache("latents", files, column=column, rows=self.batch_size)

        def read(rows: range) -> dict[str, Tensor]:
            pixels = np.stack([self._pixels(images[row], f"row {row} of {path}") for row in rows])
            return {"images": from_uint8(torch.from_numpy(pixels))}

        return encode_images(read, len(images), self.batch_size, self.autoencoder, kept, _DTYPES[self.dtype])

    def _pixels(self, encoded: bytes, name: str) -> np.ndarray:
        try:
            return decode_image(encoded, self.image_size, channels=3)
        except ValueError as error:
            raise ValueError(f"{name}: the image cannot be read: {error}") from error

    def _cache(self, what: str, files: Sequence[Path], **depends_on: Any) -> ChunkCache:
        description = {"format": _FORMAT, "dtype": self.dtype, "image_size": self.image_size, **depends_on}
        return ChunkCache(self.cache_folder, fingerprint(description, files=files), what, "data.cache")

    def _chunk(self, items: Sequence[Any], chunk: int) -> Sequence[Any]:
        return items[chunk * self.batch_size : (chunk + 1) * self.batch_size]

    def _kept(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        # Sizes are numbers of up to thousands of pixels, which half precision would round.
        dtype = _DTYPES[self.dtype]
        return {name: tensor if name == "time_ids" else tensor.to(dtype) for name, tensor in tensors.items()}


def read_prompts(path: str | list[str], column: str) -> list[str]:
    """The prompts of a .txt file (a line each, empty ones left out), of a parquet file's ``column``, or of a list.

    Raises:
        ValueError: if there are none, or the file is missing or of another kind.
    """
    if not isinstance(path, str):
        prompts = [str(prompt) for prompt in path]
    elif path.endswith(".parquet"):
        prompts = _open_parquet(path, column).read(columns=[column]).column(column).to_pylist()
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(
                f"{path}: column {column!r} holds other things than text; choose another by data.column=..."
            )
    elif path.endswith(".txt"):
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"data.path={path}: the prompts cannot be read: {error}") from error
        prompts = [line.strip() for line in lines if line.strip()]
    else:
        raise ValueError(f"data.path={path}: expected a .txt file with a prompt a line, or a .parquet file")
    if not prompts:
        raise ValueError(f"data.path={path}: there is no prompt in it")
    return prompts


class ParquetImages(Sequence[bytes]):
    """The encoded images of a parquet file's ``column``: bytes, or Hugging Face's ``{"bytes": ..., "path": ...}``.

    They are read as they are asked for, a row group at a time.

    Raises:
        ValueError: if there is no such file or column, or it holds other things.
    """

    def __init__(self, path: str | list[str], column: str) -> None:
        if not (isinstance(path, str) and path.endswith(".parquet")):
            raise ValueError(
                f"data.image_column={column}: images are read from a .parquet file, and data.path is {path}"
            )
        self.path, self.column = path, column
        self.file = _open_parquet(path, column)
        kind = str(self.file.schema_arrow.field(column).type)
        if kind not in ("binary", "large_binary") and not kind.startswith("struct<bytes: "):
            raise ValueError(f"{path}: column {column!r} holds other things than encoded images: {kind}")
        sizes = [self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups)]
        self.ends = list(accumulate(sizes))
        self._group = lru_cache(1)(self._read_group)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, row: Any) -> Any:
        group = bisect_right(self.ends, row)
        cell = self._group(group)[row - (self.ends[group - 1] if group else 0)]
        encoded = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(encoded, bytes):
            raise ValueError(f"row {row} of {self.path}: there is no image in column {self.column!r}")
        return encoded

    def _read_group(self, group: int) -> list[Any]:
        return self.file.read_row_group(group, columns=[self.column]).column(0).to_pylist()


def _open_parquet(path: str, column: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("parquet files need the package pyarrow: pip install 'onestep[text]'") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"data.path={path}: it cannot be read as parquet: {error}") from error
    if column not in file.schema_arrow.names:
        raise ValueError(f"{path} has no column {column!r}; its columns are: {', '.join(file.schema_arrow.names)}")
    return file


def _latent_shape(folder: Path, size: int | None) -> tuple[int, int, int]:
    """The shape of what the pipeline's network denoises."""
    for name, entry in json.loads((folder / "model_index.json").read_text()).items():
        if isinstance(entry, list) and entry[1] in FAMILIES:
            config = json.loads((folder / name / "config.json").read_text())
            return find_family(entry[1]).image_shape(config, size)
    raise ValueError(f"{folder}: expected a pipeline with one of the networks {', '.join(FAMILIES)}")

"""Prompts for a text-to-image model, with or without images; their embeddings and latents are computed once."""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor

from onestep.cache import CachedRows, ChunkCache, fingerprint
from onestep.data.dataset import ImageDataset
from onestep.networks.diffusers_families import FAMILIES, find_family
from onestep.networks.pipeline_parts import Autoencoder, TextEncoder, pipeline_folder

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
        self.folder, self.cache, self.batch_size, self.dtype = pipeline_folder(model), cache, batch_size, dtype
        self.autoencoder = Autoencoder.from_pretrained(self.folder)
        self.image_shape = _latent_shape(self.folder, size)
        factor = self.autoencoder.downsampling
        self.image_size = (self.image_shape[1] * factor, self.image_shape[2] * factor)
        self.text, self.unconditional = self._encode_prompts()
        self.latents = None if image_column is None else self._encode_images(read_images(path, image_column))
        self.has_images = self.latents is not None

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Latents [B, c, h, w] or None, and the condition: embeddings [B, ...] by name."""
        latents = None if self.latents is None else self.latents[indices]["latents"].float()
        return latents, {name: rows.float() for name, rows in self.text[indices].items()}

    def condition_of(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """What is drawn of each of ``seeds``: the prompts one after the other, beginning again at their end."""
        rows = self.text[[seed % len(self) for seed in seeds]]
        return {name: values.float() for name, values in rows.items()}

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of latents [B, c, h, w], both on the CPU, one at a time."""
        device = PartialState().device
        self.autoencoder.to(device)
        return torch.cat([self.autoencoder.decode(latent.to(device)).cpu() for latent in latents.split(1)])

    def fingerprint(self) -> str:
        """A hash of the prompts, the images and what encodes them."""
        caches = [self.text] if self.latents is None else [self.text, self.latents]
        return fingerprint({str(rows.cache.folder): rows.names for rows in caches})

    def _encode_prompts(self) -> tuple[CachedRows, dict[str, Tensor]]:
        """The embeddings of all prompts, and of the empty one [1, ...]."""
        index = json.loads((self.folder / "model_index.json").read_text())
        encoders: list[TextEncoder] = []

        def encoder() -> TextEncoder:
            encoders[:] = encoders or [TextEncoder(self.folder, PartialState().device, _DTYPES[self.dtype])]
            return encoders[0]

        files = TextEncoder.files(self.folder)
        description = {"format": _FORMAT, "pipeline": index, "dtype": self.dtype, "image_size": self.image_size}
        cache = ChunkCache(self.cache, fingerprint(description, files=files), "text embeddings", "data.cache")
        text = self._rows(cache, [prompt.encode() for prompt in self.prompts])
        text.fill(lambda: lambda chunk: self._kept(encoder()(self._chunk(self.prompts, chunk), self.image_size)),
                  "encoding prompts")  # fmt: skip
        empty = CachedRows(cache, ["empty"], 1)
        empty.fill(lambda: lambda _: self._kept(encoder().empty(self.image_size)), "encoding the empty prompt")
        return text, {name: values.float() for name, values in empty[[0]].items()}

    def _encode_images(self, images: Sequence[bytes]) -> CachedRows:
        description = {"format": _FORMAT, "dtype": self.dtype, "image_size": self.image_size}
        files = sorted(path for path in (self.folder / "vae").iterdir() if path.is_file())
        cache = ChunkCache(self.cache, fingerprint(description, files=files), "latents", "data.cache")
        latents = self._rows(cache, images)

        def make_compute() -> Callable[[int], dict[str, Tensor]]:
            device = PartialState().device
            autoencoder = self.autoencoder.to(device)

            def compute(chunk: int) -> dict[str, Tensor]:
                pixels = [decode_image(encoded, self.image_size) for encoded in self._chunk(images, chunk)]
                return self._kept({"latents": autoencoder.encode(torch.stack(pixels).to(device)).cpu()})

            return compute

        latents.fill(make_compute, "encoding images")
        return latents

    def _rows(self, cache: ChunkCache, items: Sequence[bytes]) -> CachedRows:
        """The rows of ``items``, in chunks that are named by what is in them."""
        names = []
        for start in range(0, len(items), self.batch_size):
            digest = hashlib.sha256()
            for item in items[start : start + self.batch_size]:
                digest.update(hashlib.sha256(item).digest())
            names.append(digest.hexdigest()[:32])
        return CachedRows(cache, names, self.batch_size)

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
        prompts = _read_column(path, column)
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


def read_images(path: str | list[str], column: str) -> list[bytes]:
    """The encoded images of a parquet file's ``column``: bytes, or Hugging Face's ``{"bytes": ..., "path": ...}``."""
    if not (isinstance(path, str) and path.endswith(".parquet")):
        raise ValueError(f"data.image_column={column}: images are read from a .parquet file, and data.path is {path}")
    cells = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in _read_column(path, column)]
    encoded = [cell for cell in cells if isinstance(cell, bytes)]
    if len(encoded) < len(cells):
        raise ValueError(f"{path}: column {column!r} holds other things than encoded images")
    return encoded


def decode_image(encoded: bytes, size: tuple[int, int]) -> Tensor:
    """An image [3, H, W] in [-1, 1]: resized so that it covers ``size`` (H, W), and cropped to its middle."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    height, width = size
    scale = max(height / image.height, width / image.width)
    resized = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(resized, Image.Resampling.LANCZOS)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def _read_column(path: str, column: str) -> list[Any]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("parquet files need the package pyarrow: pip install 'onestep[text]'") from error
    try:
        names = pyarrow.parquet.read_schema(path).names
        if column not in names:
            raise ValueError(f"{path} has no column {column!r}; its columns are: {', '.join(names)}")
        return pyarrow.parquet.read_table(path, columns=[column]).column(column).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"data.path={path}: it cannot be read as parquet: {error}") from error


def _latent_shape(folder: Path, size: int | None) -> tuple[int, int, int]:
    """The shape of what the pipeline's network denoises."""
    for name, entry in json.loads((folder / "model_index.json").read_text()).items():
        if isinstance(entry, list) and entry[1] in FAMILIES:
            config = json.loads((folder / name / "config.json").read_text())
            return find_family(entry[1]).image_shape(config, size)
    raise ValueError(f"{folder}: expected a pipeline with one of the networks {', '.join(FAMILIES)}")

"""Prompts for a text-to-image model, with or without images; their embeddings and latents are cached."""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onestep.cache import CachedRows, ChunkCache, fingerprint
from onestep.data.dataset import Batch, ImageDataset, TrainingDataset
from onestep.denoiser import Condition
from onestep.images import decode_image, from_uint8
from onestep.models.diffusers.pipeline import DTYPES, TeacherPipeline
from onestep.ranges import PathText, Text
from onestep.reading import check_file, one_line, read_bytes

_MAX_BYTES, _MAX_ROWS = 1 << 28, 1 << 23  # of one file
_RATIO = 20  # of unpacked values to their file, where they are more than _MAX_BYTES
_FORMAT = 1  # of the cached files; a new number invalidates all older files


class PromptDataset(TrainingDataset):
    """Prompts of a file as conditions for a text-to-image teacher, with the latents of their images, if any.

    Embeddings and latents are computed once and cached on disk, in chunks under a hash of their inputs, so that an
    interrupted computation resumes. They are read at each access, and never all in memory.

    Args:
        path: a .txt file with one prompt per line, a .parquet file, or a list of prompts.
        column: a parquet file's column of prompts.
        image_column: its column of encoded images (PNG, JPEG, ...), as bytes or in the format of Hugging Face datasets;
            None for no images. A discriminator needs them.
        pipeline: the teacher's pipeline.

    Raises:
        ValueError: for a file that is unreadable or empty, a pipeline without text encoders or autoencoder, or a cache
            that cannot be written.
    """

    def __init__(
        self, path: PathText | list[str], column: Text, image_column: Text | None, pipeline: TeacherPipeline
    ) -> None:
        self.pipeline, self.label_dim, self.image_shape = pipeline, 0, pipeline.latent_shape
        self.embeddings = pipeline.encode_prompts(read_prompts(path, column))
        self.images = None if image_column is None else PromptImages(path, image_column, pipeline.image_size)
        self.latents = None if self.images is None else self._encode_images(self.images)

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Latents [B, c, h, w], or None without images, and the embeddings [B, ...] of the prompts."""
        latents = None if self.latents is None else self.latents[indices]["latents"].float()
        return latents, self.embeddings[indices]

    @property
    def description(self) -> str:
        return f"{len(self):,} prompts"

    def fingerprint(self) -> str:
        """A hash of the prompts, the images and their encoders."""
        latents = {} if self.latents is None else {self.latents.cache.folder.name: self.latents.names}
        return fingerprint({"prompts": self.embeddings.fingerprint(), **latents})

    def _encode_images(self, images: "PromptImages") -> CachedRows:
        pipeline, stored = self.pipeline, images.stored
        if len(images) != len(self):
            raise ValueError(
                f"{stored.path}: it has {len(images)} images for {len(self)} prompts, expected equally many"
            )
        description = {
            "format": _FORMAT, "dtype": pipeline.dtype, "image_size": pipeline.image_size, "column": stored.column,
            "rows": pipeline.batch_size,
        }  # fmt: skip
        key = pipeline.latents_key(description, [Path(stored.path)])
        cache = ChunkCache(pipeline.cache, key, "latents", "teacher.pipeline.cache")

        def read(rows: range) -> dict[str, Tensor]:
            return {"images": images.__getitems__(rows)[0]}

        return pipeline.encode_images(read, len(images), cache, DTYPES[pipeline.dtype])


class PromptImages(ImageDataset):
    """The images of a parquet file's ``column`` in the size of a pipeline's; the reference of metrics.

    Args:
        path, column: see :class:`ParquetImages`.
        size: height and width in pixels.

    Raises:
        ValueError: as :class:`ParquetImages`, and at access for an image that cannot be read.
    """

    label_dim = 0

    def __init__(self, path: PathText | list[str], column: str, size: tuple[int, int]) -> None:
        self.stored, self.image_shape = ParquetImages(path, column), (3, *size)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Condition]:
        pixels = np.stack([self._pixels(row) for row in indices])
        return from_uint8(torch.from_numpy(pixels)), {}

    def fingerprint(self) -> str:
        content = {"image_shape": self.image_shape, "column": self.stored.column}
        return fingerprint(content, files=[Path(self.stored.path)])

    def _pixels(self, row: int) -> np.ndarray:
        encoded = self.stored[row]
        try:
            return decode_image(encoded, self.image_shape[1:], channels=3)
        except ValueError as error:
            name = f"row {row} of {self.stored.path}"
            raise ValueError(f"{name}: the image cannot be read: {one_line(error, 500)}") from error


def read_prompts(path: str | list[str], column: str) -> list[str]:
    """The prompts of a .txt file (one per line, without empty lines), of a parquet file's ``column``, or of a list.

    Raises:
        ValueError: if there are no prompts, or the file is missing or of another type.
    """
    if not isinstance(path, str):
        prompts = list(path)
    elif path.endswith(".parquet"):
        prompts = _read_column(path, column)
    elif path.endswith(".txt"):
        prompts = _read_lines(path)
    else:
        raise ValueError(f"data.path={path}: expected a .txt file with one prompt per line, or a .parquet file")
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            place = f"{path}, column {column!r}, row {row}" if isinstance(path, str) else "the prompts"
            raise ValueError(f"{place}: {one_line(prompt)} is not text: remove this row, or set data.column=...")
    if not prompts:
        raise ValueError(f"data.path={path}: it has no prompts")
    return prompts


def _read_column(path: str, column: str) -> list[Any]:
    """The values of a parquet file's column, equal texts as one object."""
    file = _open_parquet(path, column)
    kind = file.schema_arrow.field(column).type
    if kind.num_fields and not _is_dictionary(kind):
        raise ValueError(f"{path}: column {column!r} has the type {one_line(kind)}, expected text: set data.column=...")
    values: list[Any] = []
    with _readable(path):
        for chunk in file.read(columns=[column]).column(column).chunks:
            if _is_dictionary(chunk.type):
                texts = chunk.dictionary.to_pylist()
                values += [None if index is None else texts[index] for index in chunk.indices.to_pylist()]
            else:
                values += chunk.to_pylist()
    return values


def _read_lines(path: str) -> list[str]:
    """The lines of a text file with a visible character. Only line feeds and carriage returns end a line."""
    try:
        text = read_bytes(path, _MAX_BYTES).decode("utf-8-sig")
    except ValueError as error:
        raise ValueError(f"data.path={path}: the prompts cannot be read: {one_line(error, 500)}") from error
    lines = (line.strip() for line in text.replace("\r", "\n").split("\n"))
    return [line for line in lines if any(unicodedata.category(letter)[0] not in "CZ" for letter in line)]


class ParquetImages(Sequence[bytes]):
    """The encoded images of a parquet file's ``column``: bytes, or Hugging Face's ``{"bytes": ..., "path": ...}``.

    They are read at each access, one row group at a time.

    Raises:
        ValueError: if the file or column does not exist, or has another type.
    """

    def __init__(self, path: str | list[str], column: str) -> None:
        if not (isinstance(path, str) and path.endswith(".parquet")):
            raise ValueError(f"data.image_column={column}: images need a .parquet file, got data.path={path}")
        self.path, self.column = path, column
        self.file = _open_parquet(path, column)
        kind = self.file.schema_arrow.field(column).type
        fields = {field.name: field.type for field in kind} if str(kind).startswith("struct<") else {}
        encoded = fields.get("bytes", kind)
        if str(encoded.value_type if _is_dictionary(encoded) else encoded) not in ("binary", "large_binary"):
            raise ValueError(f"{path}: column {column!r} has the type {one_line(kind)}, expected encoded images")
        self._leaf = f"{column}.bytes" if fields else column
        sizes = [self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups)]
        self.ends = list(accumulate(sizes))
        self._group = lru_cache(1)(self._read_group)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, row: Any) -> Any:
        group = bisect_right(self.ends, row)
        with _readable(self.path):
            cell = self._group(group)[row - (self.ends[group - 1] if group else 0)].as_py()
        encoded = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(encoded, bytes):
            raise ValueError(f"row {row} of {self.path}: column {self.column!r} has no image there")
        return encoded

    def _read_group(self, group: int) -> Any:
        rows = self.file.read_row_group(group, columns=[self._leaf]).column(0)
        promised = self.file.metadata.row_group(group).num_rows
        if len(rows) != promised:
            raise ValueError(f"row group {group} has {len(rows)} rows instead of {promised}")
        return rows


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Raises ValueError for pyarrow's errors, which are of many types and lines."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"data.path={path}: it cannot be read as parquet: {one_line(error, 300)}") from error


def _is_dictionary(kind: Any) -> bool:
    return str(kind).startswith("dictionary<")


def _open_parquet(path: str, column: str) -> Any:
    """An open parquet file with a ``column``, whose equal values stay one: a kilobyte can stand for terabytes."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("parquet files need the package pyarrow: pip install 'onestep[text]'") from error
    with _readable(path):
        check_file(path)
        metadata = pyarrow.parquet.read_metadata(path)
        leaves = [metadata.schema.column(index) for index in range(metadata.num_columns)]
        inside = [leaf for leaf in leaves if f"{leaf.path}.".startswith(f"{column}.")]
        texts = [leaf.path for leaf in inside if leaf.physical_type == "BYTE_ARRAY"]
        file = pyarrow.parquet.ParquetFile(path, metadata=metadata, read_dictionary=texts)
    if column not in file.schema_arrow.names:
        raise ValueError(
            f"{path} has no column {column!r}; its columns are: {one_line(', '.join(file.schema_arrow.names), 300)}"
        )
    if file.metadata.num_rows > _MAX_ROWS:
        raise ValueError(f"{path}: {file.metadata.num_rows:,} rows are more than {_MAX_ROWS:,}: divide the file")
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if size > max(_MAX_BYTES, _RATIO * Path(path).stat().st_size):
        raise ValueError(f"{path}: it unpacks to {size / 1e9:,.1f} GB, far more than its own size")
    return file

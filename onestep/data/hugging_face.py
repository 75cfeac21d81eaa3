"""Datasets of the Hugging Face hub, or in its formats on this machine."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from onestep.data.stored import Contents, EncodedImages, class_labels
from onestep.images import DamagedImageError


@dataclass(eq=False)
class HuggingFaceDataset(EncodedImages):
    """A split of a dataset of images, read from its memory-mapped files. Needs the extra ``datasets``.

    See :class:`onestep.data.stored.EncodedImages` for the other arguments. Nothing that a dataset brings is run:
    loading scripts are refused, and images are decoded as all others are.

    Args:
        path: a name on the hub, or a folder that ``save_to_disk`` wrote or ``load_dataset`` reads.
        split: which part, such as train.
        image_column: the column of images.
        label_column: the column of classes; null for none.

    Raises:
        ValueError: without the extra, and if there is no such dataset, split or column.
    """

    _: KW_ONLY
    split: str
    image_column: str = "image"
    label_column: str | None = None

    def open(self) -> Contents:
        try:
            import datasets
        except ImportError as error:
            raise ValueError("Hugging Face datasets need an extra: pip install 'onestep[datasets]'") from error
        table = self._load(datasets)
        for column in (self.image_column, self.label_column):
            if column is not None and column not in table.column_names:
                raise ValueError(
                    f"{self.path}: no column {column!r}; the columns are {', '.join(table.column_names)}: choose by "
                    "data.image_column=... and data.label_column=..."
                )
        if not isinstance(table.features[self.image_column], datasets.Image):
            raise ValueError(f"{self.path}: the column {self.image_column!r} holds no images")
        self.table = table.cast_column(self.image_column, datasets.Image(decode=False))
        names = range(len(table))
        if self.label_column is None or not self.use_labels:
            return Contents([f"row {row}" for row in names])
        rows = [f"row {row}" for row in names]
        labels = class_labels(table[self.label_column][:], rows, self.path)
        named = getattr(table.features[self.label_column], "num_classes", 0)
        return Contents(rows, labels, named or int(labels.max(initial=-1)) + 1)

    def _load(self, datasets: Any) -> Any:
        """The split as a table, of a folder by ``save_to_disk`` or of anything that ``load_dataset`` takes."""
        folder = Path(self.path)
        try:
            if (folder / "dataset_dict.json").is_file():
                return datasets.load_from_disk(str(folder / self.split))
            if (folder / "state.json").is_file():
                return datasets.load_from_disk(str(folder))
            return datasets.load_dataset(self.path, split=self.split)
        except Exception as error:  # the library's own, of many kinds
            raise ValueError(f"{self.path}, split {self.split!r}: {type(error).__name__}: {error}") from error

    def encoded(self, position: int) -> bytes:
        image = self.table[position][self.image_column]
        if image is None:
            raise DamagedImageError("there is none")
        if image["bytes"] is not None:
            return bytes(image["bytes"])
        try:
            return Path(image["path"]).read_bytes()
        except OSError as error:
            raise DamagedImageError(str(error)) from error

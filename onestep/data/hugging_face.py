"""Datasets of the Hugging Face hub, or local ones in its formats."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from onestep.data.stored import Contents, EncodedImages, class_labels
from onestep.images import DamagedImageError, read_file
from onestep.ranges import Text, checked
from onestep.reading import one_line


@checked
@dataclass(eq=False)
class HuggingFaceDataset(EncodedImages):
    """A split of a dataset of images, read from its memory-mapped files. It needs the extra ``datasets``.

    No code of a dataset is run: a loading script is an error. For the other arguments see
    :class:`onestep.data.stored.EncodedImages`.

    Args:
        path: a name on the hub, or a folder of ``save_to_disk`` or for ``load_dataset``.
        split: the split, such as train.
        image_column: the column of images.
        label_column: the column of classes; None for no labels.

    Raises:
        ValueError: if the extra is missing, or the dataset, split or column does not exist.
    """

    _: KW_ONLY
    split: Text
    image_column: Text = "image"
    label_column: Text | None = None

    def open(self) -> Contents:
        try:
            import datasets
        except ImportError as error:
            raise ValueError("Hugging Face datasets need an extra: pip install 'onestep[datasets]'") from error
        table = self._load(datasets)
        for column in (self.image_column, self.label_column):
            if column is not None and column not in table.column_names:
                raise ValueError(
                    f"{self.path}: no column {column!r}; the columns are "
                    f"{one_line(', '.join(table.column_names), 300)}: set "
                    "data.image_column=... and data.label_column=..."
                )
        if not isinstance(table.features[self.image_column], datasets.Image):
            raise ValueError(f"{self.path}: the column {self.image_column!r} holds no images")
        self.table = table.cast_column(self.image_column, datasets.Image(decode=False))
        rows = [f"row {row}" for row in range(len(table))]
        if self.label_column is None or not self.use_labels:
            return Contents(rows)
        labels = class_labels(table[self.label_column][:], rows, self.path)
        named = getattr(table.features[self.label_column], "num_classes", 0)
        return Contents(rows, labels, max(named, int(labels.max(initial=-1)) + 1))

    def _load(self, datasets: Any) -> Any:
        """The split as a table, from a folder of ``save_to_disk`` or by ``load_dataset``."""
        folder = Path(self.path)
        try:
            if (folder / "dataset_dict.json").is_file():
                return datasets.load_from_disk(str(folder / self.split))
            if (folder / "state.json").is_file():
                return datasets.load_from_disk(str(folder))
            return datasets.load_dataset(self.path, split=self.split)
        except Exception as error:  # the library raises many types of errors
            reason = f"{type(error).__name__}: {one_line(error, 500)}"
            raise ValueError(f"{self.path}, split {self.split!r}: {reason}") from error

    def encoded(self, position: int) -> bytes:
        image = self.table[position][self.image_column]
        if image is None:
            raise DamagedImageError("the row has no image")
        if image["bytes"] is not None:
            return bytes(image["bytes"])
        return read_file(Path(image["path"]))

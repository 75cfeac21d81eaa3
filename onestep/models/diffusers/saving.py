"""Saving of a pipeline of diffusers with another network in it."""

import json
import shutil
from pathlib import Path
from typing import Any

from onestep.models.diffusers.folder import INDEX, PipelineIndex, part_files
from onestep.reading import read_json

_COPIED_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")  # neither pickles nor code


def save_pipeline(source: Path, output: Path, network: Any, scheduler: Any, variant: str | None) -> None:
    """Write the pipeline in the folder ``source`` with a ``network`` of the same class and a ``scheduler`` in it.

    The other components are copied, their weights once: of the ``variant``, or of the default where there is none.
    """
    index, content = PipelineIndex.of(source), read_json(source / INDEX, dict[str, Any])
    name = network_name(index, type(network).__name__)
    for part in index.components:
        if part not in (name, "scheduler"):
            _copy(source / part, output / part, variant)
    network.save_pretrained(output / name)
    scheduler.save_pretrained(output / "scheduler")
    absent = {part for part, entry in content.items() if isinstance(entry, list)} - set(index.components)
    content |= {part: [None, None] for part in sorted(absent)}
    content["scheduler"] = ["diffusers", type(scheduler).__name__]
    (output / INDEX).write_text(json.dumps(content, indent=2) + "\n")


def network_name(index: PipelineIndex, network_class: str) -> str:
    """The name of a pipeline's network, which is its folder."""
    return next(name for name, kind in index.components.items() if kind == network_class)


def _copy(source: Path, target: Path, variant: str | None) -> None:
    """Copy a component with its weights once, under the names of the default."""
    target.mkdir(parents=True)
    for file, name in part_files(source, variant).items():
        if file.suffix in _COPIED_SUFFIXES:
            shutil.copyfile(file, target / name)

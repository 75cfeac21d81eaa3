"""Accelerate's trackers, such as TensorBoard and W&B: a run is one of theirs, also after it was resumed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from PIL import Image

from onestep.engine.records import flatten
from onestep.files import to_json, write_text
from onestep.reading import read_json

#: The file of the runs' names in their trackers, in a run's folder.
IDENTITIES = "trackers.json"
_PROJECT = "onestep"
#: The names that trackers give a run, and the arguments that continue it. Others have the folder's name.
_IDENTITY: dict[str, Callable[[Any], str]] = {
    "wandb": lambda run: run.id,
    "mlflow": lambda run: run.info.run_id,
    "aim": lambda run: run.hash,
}
_CONTINUED: dict[str, Callable[[str], dict[str, str]]] = {
    "wandb": lambda name: {"id": name, "resume": "allow"},
    "mlflow": lambda name: {"run_id": name},
    "aim": lambda name: {"run_hash": name},
}


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of accelerate's trackers are installed; accelerate leaves out those that are not.

    Raises:
        ValueError: naming the first that is unknown or not installed.
    """
    available, known = {str(name) for name in get_available_trackers()}, sorted(LOGGER_TYPE_TO_CLASS)
    for name in names:
        if name != "all" and name not in known:
            raise ValueError(f"trackers={name}: expected some of {', '.join(known)}, or all of those installed")
        if name not in available and (name != "all" or not available):
            package = "one of their packages" if name == "all" else f"the package {name}"
            raise ValueError(f"trackers={name}: {package} is not installed: install it, or set trackers=[]")


def start_trackers(accelerator: Accelerator, folder: Path, record: str, images_seen: int) -> None:
    """Start the accelerator's trackers with the configuration, or continue their runs, in the main process alone.

    Args:
        accelerator: with the trackers.
        folder: of the run; its file :data:`IDENTITIES` keeps the run's names in the trackers.
        record: the configuration in YAML. Runs that are continued keep theirs; the log has changed settings.
        images_seen: up to the run's start; TensorBoard drops what a lost part of the run wrote after it.

    Raises:
        ValueError: if the file of the names is damaged.
    """
    if not accelerator.is_main_process:
        return
    path = folder / IDENTITIES
    known = read_json(path, dict[str, str]) if path.is_file() else {}
    options: dict[str, Any] = {"wandb": {"name": folder.name}, "mlflow": {"run_name": folder.name}}
    for name in known.keys() & _CONTINUED.keys():
        options[name] = options.get(name, {}) | _CONTINUED[name](known[name])
    if images_seen:
        options["tensorboard"] = {"purge_step": images_seen + 1}
    started = {str(name) for name in accelerator.log_with}
    accelerator.init_trackers(_PROJECT, init_kwargs={name: options[name] for name in options.keys() & started})
    settings = {  # of the types that trackers take, under names that MLflow takes
        key.replace("@", ":"): value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in flatten(yaml.safe_load(record)).items()
    }
    for tracker in accelerator.trackers:
        if tracker.name not in known:
            tracker.store_init_configuration(settings)
    found = {one.name: _IDENTITY.get(one.name, lambda run: folder.name)(one.tracker) for one in accelerator.trackers}
    write_text(path, to_json(known | found, indent=2) + "\n")


def send_picture(accelerator: Accelerator, name: str, path: Path, images_seen: int) -> None:
    """Send the image in the file ``path`` to the trackers that take images. The main process alone calls it."""
    pixels: np.ndarray | None = None
    for tracker in accelerator.trackers:
        if tracker.name == "mlflow":
            tracker.log_artifact(str(path), name)
        elif hasattr(tracker, "log_images"):
            pixels = np.asarray(Image.open(path).convert("RGB")) if pixels is None else pixels
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            batch = pixels if tracker.name in ("aim", "clearml") else pixels[None]  # the others take several
            tracker.log_images({name: batch}, step=images_seen, **options)


def finish_trackers(accelerator: Accelerator, summary: Mapping[str, Any]) -> None:
    """Send the numbers of a run's summary, such as ``final/student/fid``, and close the trackers."""
    numbers = {f"final/{key}": value for key, value in flatten(summary, "/").items() if type(value) in (int, float)}
    accelerator.log(numbers, step=summary.get("images_seen"))
    for tracker in accelerator.trackers:
        tracker.finish()

"""Converts a file of EDM's format into a folder of safetensors with its config; nothing in the file is run."""

from pathlib import Path

from onestep.files import atomic_folder
from onestep.models.edm.checkpoint import load_edm
from onestep.models.loading import load_generator


def convert(source: Path, target: Path, sigma_init: float | None = None) -> int:
    """Write the network of ``source`` into the folder ``target``, which is then complete or absent.

    Args:
        source: a file of EDM's format, see :func:`onestep.models.edm.checkpoint.load_edm`.
        target: a folder that does not exist yet.
        sigma_init: for a one-step generator, the noise level at which it is evaluated, in data units; None for a
            teacher.

    Returns:
        How many parameters the network has.

    Raises:
        ValueError: if the file cannot be read, or the folder exists.
    """
    if target.exists():
        raise ValueError(f"{target} exists already: choose a new folder")
    network = load_edm(source) if sigma_init is None else load_generator(source, sigma_init)
    with atomic_folder(target) as temporary:
        network.save_pretrained(temporary)
    return sum(parameter.numel() for parameter in network.parameters())

"""Conversion of a file of EDM's format to a folder of safetensors with a config. No code in the file is run."""

from pathlib import Path

from onestep.files import atomic_folder
from onestep.models.edm.checkpoint import load_edm
from onestep.models.loading import load_generator


def convert(source: Path, target: Path, sigma_init: float | None = None) -> int:
    """Write the network of ``source`` into the folder ``target``. A failure leaves no folder.

    Args:
        source: a file of EDM's format, see :func:`onestep.models.edm.checkpoint.load_edm`.
        target: a new folder.
        sigma_init: noise level of a one-step generator, in data units; None for a teacher.

    Returns:
        The number of parameters of the network.

    Raises:
        ValueError: if the file cannot be read, or the folder exists.
    """
    if target.exists():
        raise ValueError(f"{target} already exists: give a new folder")
    network = load_edm(source) if sigma_init is None else load_generator(source, sigma_init)
    with atomic_folder(target) as temporary:
        network.save_pretrained(temporary)
    return sum(parameter.numel() for parameter in network.parameters())

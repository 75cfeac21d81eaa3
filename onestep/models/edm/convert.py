"""Converts a file of EDM's format into a folder of safetensors with its config; nothing in the file is run."""

import tempfile
from pathlib import Path

from onestep.models.edm.checkpoint import load_edm
from onestep.models.loading import load_generator


def convert(source: Path, target: Path, sigma_init: float | None = None) -> int:
    """Write the network of ``source`` into the folder ``target``, which then exists whole or not at all.

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
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
        written = Path(beside) / "network"
        network.save_pretrained(written)
        written.rename(target)
    return sum(parameter.numel() for parameter in network.parameters())

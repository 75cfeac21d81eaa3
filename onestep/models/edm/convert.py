"""Converts a file of EDM's format into a folder of safetensors with its config.

``python -m onestep.models.edm.convert --help`` shows how; nothing in the file is run.
"""

import argparse
import sys
from collections.abc import Sequence
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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; a mistake ends in one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m onestep.models.edm.convert",
        description="Convert a checkpoint of EDM's format (.pkl of EDM, SiD, SiDA or Uni-Instruct, or DMD2's ImageNet "
        "state dict) into a folder of safetensors with its config. Nothing in the file is run.",
        epilog="The folder is a teacher's, for train.py teacher=local teacher.path=FOLDER; with --sigma-init it is a "
        "generator's, for sample.py checkpoint=FOLDER and train.py generator.init=FOLDER.",
    )
    parser.add_argument("source", type=Path, metavar="FILE", help="the checkpoint")
    parser.add_argument("target", type=Path, metavar="FOLDER", help="the folder to write, which must not exist yet")
    parser.add_argument(
        "--sigma-init",
        type=float,
        metavar="SIGMA",
        help="the file is a one-step generator, evaluated at this noise level: 2.5 for SiD, SiDA and Uni-Instruct, 80 "
        "for DMD2",
    )
    given = parser.parse_args(arguments)
    try:
        parameters = convert(given.source, given.target, given.sigma_init)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{given.target}: {parameters:,} parameters")


if __name__ == "__main__":
    main()

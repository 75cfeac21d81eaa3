"""``onestep convert``: conversion of a checkpoint in EDM's format to a folder of safetensors."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from onestep.models.edm.convert import convert


def main(arguments: Sequence[str]) -> None:
    """Convert a checkpoint.

    Raises:
        ValueError: as :func:`onestep.models.edm.convert.convert`.
    """
    parser = argparse.ArgumentParser(
        prog="onestep convert",
        description="Convert a checkpoint in EDM's format (.pkl of EDM, SiD, SiDA or Uni-Instruct, or DMD2's ImageNet "
        "state dict) to a folder of safetensors with its config. Nothing in the file is executed.",
        epilog="The folder is a teacher, for onestep train teacher=local teacher.path=FOLDER; with --sigma-init it "
        "is a generator, for onestep sample checkpoint=FOLDER and onestep train generator.init=FOLDER.",
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
    print(f"{given.target}: {convert(given.source, given.target, given.sigma_init):,} parameters")

"""``onestep export``: export of a finished run as a diffusers pipeline, or as meshes."""

import argparse
from collections.abc import Sequence

from onestep.export.export import export

_EPILOG = """\
Load the folder with diffusers' from_pretrained; its README.md, the model card, has an example. To publish it:
  hf upload USER/NAME OUTPUT"""


def main(arguments: Sequence[str]) -> None:
    """Export a run.

    Raises:
        ValueError: as :func:`onestep.export.export.export`.
    """
    parser = argparse.ArgumentParser(
        prog="onestep export",
        description="Write a finished run's generator as a diffusers pipeline folder with a model card; of a scene the "
        "densities and meshes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="the run's folder, such as outputs/digits_long/2026-01-31_12-00-00_123456")
    parser.add_argument("output", help="the folder to write, which must not exist yet")
    parser.add_argument(
        "--weights", help="an average of the run, such as ema, or raw: the last iterate; default: the first"
    )
    options = parser.parse_args(arguments)
    print(f"written: {export(options.run, options.output, options.weights)}")

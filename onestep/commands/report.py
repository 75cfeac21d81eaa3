"""``onestep report``: the page of a run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from onestep.pages.run import REPORT, write_report


def main(arguments: Sequence[str]) -> None:
    """Write the page of a run, which may still train.

    Raises:
        ValueError: as :func:`onestep.pages.run.write_report`.
    """
    parser = argparse.ArgumentParser(
        prog="onestep report", description="Write the report of a run, finished or not, as one file for a browser."
    )
    parser.add_argument("run", type=Path, help="the run's folder, such as outputs/digits/2026-01-31_12-00-00_123456")
    parser.add_argument("-o", "--output", type=Path, help="the file to write; default: report.html in the folder")
    options = parser.parse_args(arguments)
    output = options.output or options.run / REPORT
    write_report(options.run, output)
    print(f"written: {output}")

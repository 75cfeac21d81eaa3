"""``onestep compare``: a table of metrics and a plot of samples of the runs in a folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from onestep.files import write_text
from onestep.reports.compare import generate_all, read_runs, save_panels, to_table


def main(arguments: Sequence[str]) -> None:
    """Write ``OUTPUT.md`` and ``OUTPUT.png``, and print the table.

    Raises:
        ValueError: if the folder holds no finished run.
    """
    parser = argparse.ArgumentParser(
        prog="onestep compare", description="Make a table and a plot of the runs in a folder, such as a sweep's."
    )
    parser.add_argument("folder", type=Path, help="the folder of a sweep, with a run in each subfolder")
    parser.add_argument("output", type=Path, help="path without suffix: OUTPUT.md and OUTPUT.png are written")
    parser.add_argument("--samples", type=int, default=2000, help="samples per panel; about 25 for images")
    options = parser.parse_args(arguments)
    runs = read_runs(options.folder)
    table = to_table(runs)
    save_panels(generate_all(runs, options.samples), Path(f"{options.output}.png"))
    write_text(f"{options.output}.md", table)
    print(table)

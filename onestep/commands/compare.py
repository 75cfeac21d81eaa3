"""``onestep compare``: a folder of runs as one table and one picture."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from onestep.files import write_text
from onestep.reports.compare import draw_all, read_runs, save_panels, to_table


def main(arguments: Sequence[str]) -> None:
    """Write ``OUTPUT.md`` and ``OUTPUT.png``, and print the table.

    Raises:
        ValueError: if the folder holds no finished run.
    """
    parser = argparse.ArgumentParser(
        prog="onestep compare", description="Make a table and a picture of a folder of runs, such as a sweep's."
    )
    parser.add_argument("folder", type=Path, help="the folder of a sweep, with a run in each subfolder")
    parser.add_argument("output", type=Path, help="where to write, without an ending: OUTPUT.md and OUTPUT.png")
    parser.add_argument("--samples", type=int, default=2000, help="samples in a panel; 25 suit images")
    options = parser.parse_args(arguments)
    runs = read_runs(options.folder)
    table = to_table(runs)
    save_panels(draw_all(runs, options.samples), Path(f"{options.output}.png"))
    write_text(f"{options.output}.md", table)
    print(table)

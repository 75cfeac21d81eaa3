"""``onestep compare``: a table of metrics and a plot of samples of the runs in a folder, or a page of several runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from onestep.files import write_text
from onestep.reports.compare import generate_all, read_runs, save_panels, to_table

_EPILOG = """\
onestep compare SWEEP OUTPUT              OUTPUT.md and OUTPUT.png, of a sweep's finished runs
onestep compare RUN RUN... -o page.html   one page for a browser, also of runs that still train"""


def main(arguments: Sequence[str]) -> None:
    """Write ``OUTPUT.md`` and ``OUTPUT.png`` and print the table, or write a page.

    Raises:
        ValueError: if the folder holds no finished run; as :func:`onestep.pages.compare.write_comparison`.
    """
    parser = argparse.ArgumentParser(
        prog="onestep compare",
        description="Make a table and a plot of the runs in a folder, such as a sweep's, or a page of several runs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="the folder of a sweep, and OUTPUT; with -o, runs or sweeps"
    )
    parser.add_argument("-o", "--page", type=Path, help="write this page, for a browser")
    parser.add_argument("--samples", type=int, default=2000, help="samples per panel; about 25 for images")
    options = parser.parse_args(arguments)
    if options.page is not None:
        from onestep.pages.compare import write_comparison

        write_comparison(options.paths, options.page)
        print(f"written: {options.page}")
        return
    if len(options.paths) != 2:
        parser.error("expected a sweep's folder and OUTPUT, or runs with -o page.html")
    folder, output = options.paths
    runs = read_runs(folder)
    table = to_table(runs)
    save_panels(generate_all(runs, options.samples), Path(f"{output}.png"))
    write_text(f"{output}.md", table)
    print(table)

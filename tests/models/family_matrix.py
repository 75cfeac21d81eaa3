"""Writes the matrix of families in docs/teachers.md: ``python -m tests.models.family_matrix`` runs its cells."""

import re
from pathlib import Path
from typing import Any

import pytest

CELLS = ("load", "distil", "lora", "resume", "export", "elsewhere", "onnx")
_ROOT = Path(__file__).parents[2]
_TABLE = re.compile(r"(?<=<!-- families -->\n).*?(?=<!-- end of families -->)", re.DOTALL)
_TEST = re.compile(rf"test_families\.py::test_({'|'.join(CELLS)})\[(.+)\]$")


class _Results:
    """A plugin of pytest that keeps whether each cell passed."""

    def __init__(self) -> None:
        self.passed: dict[tuple[str, str], bool] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if found := _TEST.search(report.nodeid):
            cell = (found[2], found[1])
            self.passed[cell] = self.passed.get(cell, True) and report.passed


def table(passed: dict[tuple[str, str], bool]) -> str:
    """The table in Markdown."""
    words = {True: "yes", False: "**no**", None: "refused"}
    lines = [f"| family | {' | '.join(CELLS)} |", "| --- " * (1 + len(CELLS)) + "|"]
    for family in dict.fromkeys(family for family, _ in passed):
        lines.append(f"| {family} | {' | '.join(words[passed.get((family, cell))] for cell in CELLS)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the cells, and write the table; 0 if all passed."""
    results = _Results()
    code = pytest.main(["-q", "-m", "slow or not slow", str(_ROOT / "tests/models/test_families.py")], [results])
    page = _ROOT / "docs/teachers.md"
    page.write_text(_TABLE.sub(lambda _: table(results.passed), page.read_text()))
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main())

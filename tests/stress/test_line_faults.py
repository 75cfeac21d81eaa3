"""A test of the tests: each fault of one line in ``line_faults/`` makes a default test fail.

A fault is put into a copy of the repository, whose tests run in a process of their own.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.helpers.paths import REPOSITORY

RunTests = Callable[..., tuple[int, str]]

_PARTS = ("onestep", "tests", "benchmarks", "docs", "pyproject.toml", "README.md", "train.py", "sample.py")
#: What a test raises if the fault broke the code, instead of its result.
_BROKEN = ("ImportError", "ModuleNotFoundError", "NameError", "SyntaxError", "UnboundLocalError")


@dataclass(frozen=True)
class Fault:
    """A fault: ``old`` occurs once in the ``file``, and ``new`` replaces it.

    Args:
        name: what is wrong then.
        file: its place in the repository.
        old, new: the part of a line, and what replaces it.
        noticed_by: the default test that fails.
    """

    name: str
    file: str
    old: str
    new: str
    noticed_by: str

    @property
    def id(self) -> str:
        """The name as a part of a test's name."""
        return re.sub("[^a-z0-9]+", "_", self.name.lower())

    def apply(self, copy: Path) -> None:
        """Put the fault into a ``copy`` of the repository."""
        path = copy / self.file
        source = path.read_text(encoding="utf-8").replace(self.old, self.new)
        if path.suffix == ".py":
            compile(source, self.file, "exec")
        path.write_text(source, encoding="utf-8")


FAULTS = [
    Fault(**values)
    for file in sorted(Path(__file__).with_name("line_faults").glob("*.yaml"))
    for values in yaml.safe_load(file.read_text(encoding="utf-8"))
]


def test_the_list_fits_the_code() -> None:
    """Every fault is of one line that occurs once, has a name of its own, and names a test that there is."""
    assert len({fault.id for fault in FAULTS}) == len(FAULTS) > 97
    sources = {fault.file: (REPOSITORY / fault.file).read_text(encoding="utf-8") for fault in FAULTS}
    counts = {fault.name: sources[fault.file].count(fault.old) for fault in FAULTS}
    lost = {name: count for name, count in counts.items() if count != 1}
    assert not lost, f"occur not once: follow the line, or delete a fault that the code can no more have: {lost}"
    assert [fault.name for fault in FAULTS if fault.old == fault.new or "\n" in fault.old + fault.new] == []
    tests = {file: _functions(file) for file in {fault.noticed_by.partition("::")[0] for fault in FAULTS}}
    missing = [fault.noticed_by for fault in FAULTS if not _exists(fault.noticed_by, tests)]
    assert not missing, f"name the tests that notice the faults now: {missing}"


def _functions(file: str) -> set[str]:
    tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def _exists(test: str, tests: dict[str, set[str]]) -> bool:
    file, _, name = test.partition("::")
    return name.partition("[")[0] in tests[file]


def copy_of_the_repository(folder: Path) -> Path:
    for part in _PARTS:
        source = REPOSITORY / part
        if source.is_dir():
            shutil.copytree(source, folder / part)  # with compiled files, which stay valid
        else:
            shutil.copy2(source, folder / part)
    return folder


@pytest.fixture(scope="module")
def run_tests() -> Iterator[RunTests]:
    """The exit code and the output of tests of a copy of the repository."""
    script = [sys.executable, str(Path(__file__).with_name("tester.py"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as tester:
        assert tester.stdin is not None and tester.stdout is not None
        wish, answer = tester.stdin, tester.stdout

        def run(copy: Path, *tests: str) -> tuple[int, str]:
            wish.write(json.dumps([str(copy), tests]) + "\n")
            wish.flush()
            code = int(answer.readline())
            return code, (copy / "output.txt").read_text(encoding="utf-8")

        yield run
        wish.close()


@pytest.mark.slow
def test_without_a_fault_they_pass(run_tests: RunTests, tmp_path: Path) -> None:
    copy = copy_of_the_repository(tmp_path)
    code, output = run_tests(copy, *sorted({fault.noticed_by for fault in FAULTS}))
    shutil.rmtree(tmp_path)
    assert code == 0, output[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=[fault.id for fault in FAULTS])
def test_a_fault_is_noticed(fault: Fault, run_tests: RunTests, tmp_path: Path) -> None:
    """By a failed test, and not by an error before it."""
    copy = copy_of_the_repository(tmp_path)
    fault.apply(copy)
    code, output = run_tests(copy, "-x", fault.noticed_by)
    shutil.rmtree(tmp_path)
    failures = [line for line in output.splitlines() if line.startswith("FAILED ")]
    assert code == 1 and failures, f"not noticed: {fault.name}\n{output[-2000:]}"
    assert not any(f" {error}" in failures[0] for error in _BROKEN), failures[0]

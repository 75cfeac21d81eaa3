"""Randomly damaged files of every reader."""

import pytest

from tests.helpers.scripts import run_python
from tests.stress.readers import READERS


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_read_or_refused(reader: str) -> None:
    done = run_python("-m", "tests.stress.fuzz", reader, "--seconds", "10")
    assert done.returncode == 0 and "refused" in done.stdout, done.stderr

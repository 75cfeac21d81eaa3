"""Python in a process of its own, as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import REPOSITORY


def run_python(*arguments: str, cwd: str | Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The output of Python with ``arguments``, on one thread and with the repository's package."""
    inherited = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, timeout=300, cwd=cwd, env=inherited | environment,
    )  # fmt: skip

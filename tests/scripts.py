"""Python in a subprocess, for tests of scripts."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The result of Python with ``arguments``, on one thread."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip

"""Runs the tests of copies of the repository, each in a fork of this process.

It has imported what they need of other packages, which else would take seconds of each. It reads lines of JSON: the
folder of a copy, and its tests. For each it prints the exit code; what pytest prints is in the copy's ``output.txt``.
"""

import importlib
import json
import os
import signal
import sys
from typing import NoReturn

import pytest

_IMPORTED = (
    "accelerate", "diffusers", "hydra", "matplotlib", "omegaconf", "pydantic", "safetensors.torch", "sklearn.datasets",
    "torch", "torch.distributed.fsdp", "torchmetrics",
)  # fmt: skip
_SECONDS = 600


def run(copy: str, tests: list[str]) -> NoReturn:
    """End this process with the exit code of the ``tests`` of a ``copy``."""
    os.chdir(copy)
    sys.path.insert(0, copy)
    os.environ |= {"PYTHONPATH": copy, "TMPDIR": copy}
    with open("output.txt", "w") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    signal.alarm(_SECONDS)  # a fault may be a loop without end
    code = pytest.main(["-q", "-p", "no:cacheprovider", "-rfE", "--tb=line", *tests])
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    """Run what each line of the standard input says."""
    for name in _IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        copy, tests = json.loads(line)
        process = os.fork()
        if process == 0:
            run(copy, tests)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()

"""Reads randomly damaged files: each is read, or refused by a ValueError, in ten seconds and a gigabyte.

    python -m tests.stress.fuzz manifest --seconds 600 --seed 1

prints the counts, and ends at the first file that does something else. The file is kept, and its number reproduces it:
``--first NUMBER``. Every case is a function of the seed and its number. The readers are in :mod:`tests.stress.readers`.
"""

import argparse
import faulthandler
import logging
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import NoReturn

from tests.stress.reader import Reader
from tests.stress.readers import READERS

SECONDS = 10
BYTES = 10**9


class FaultError(Exception):
    """A file that did what it must not."""


def fuzz(name: str, seconds: float, seed: int, first: int = 0) -> Counter[str]:
    """Read damaged files for ``seconds`` from case ``first`` on; returns how many were read and refused.

    Raises:
        FaultError: naming the case, the kept file and what it did.
    """
    counts: Counter[str] = Counter()
    signal.signal(signal.SIGALRM, _stop)
    with tempfile.TemporaryDirectory(prefix=f"fuzz_{name}_") as temporary:
        folder = Path(temporary)
        os.chdir(folder)
        reader = READERS[name](folder)
        peak, number, end = _peak(), first, time.monotonic() + seconds
        while time.monotonic() < end:
            random = Random(f"{name} {seed} {number}")
            content = reader.mutate(random.choice(reader.seeds), random)
            counts[_read(reader, content, f"{name}, seed {seed}, case {number}", peak)] += 1
            number += 1
        if any(path.name == "MARKER" for path in folder.rglob("*")):
            raise FaultError(f"{name}, seed {seed}, before case {number}: a file ran a command")
    return counts


def _read(reader: Reader, content: bytes, case: str, peak: int) -> str:
    reader.path.unlink(missing_ok=True)
    reader.path.write_bytes(content)
    outcome, problem = "read", ""
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True)  # for what no signal interrupts
    signal.alarm(SECONDS)
    try:
        reader.read()
    except ValueError as error:
        outcome = "refused"
        if "\n" in str(error):
            problem = f"a message of several lines: {str(error)[:500]!r}"
    except (Exception, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    if _peak() - peak > BYTES:
        problem = f"{(_peak() - peak) / 1e9:.1f} GB"
    if problem:
        kept = Path(tempfile.gettempdir()) / f"fault_{case.replace(', ', '_').replace(' ', '')}{reader.path.suffix}"
        kept.write_bytes(content)
        raise FaultError(f"{case}: {problem}; kept in {kept}")
    return outcome


def _stop(*_: object) -> NoReturn:
    raise FaultError(f"more than {SECONDS} s")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=sorted(READERS))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    try:
        counts = fuzz(arguments.reader, arguments.seconds, arguments.seed, arguments.first)
    except FaultError as error:
        sys.exit(f"fault: {error}")
    print(
        f"{arguments.reader}, seed {arguments.seed}: {counts['read']:,} read, {counts['refused']:,} refused", flush=True
    )


if __name__ == "__main__":
    main()

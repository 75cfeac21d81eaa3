"""The processor seconds from the start of ``onestep sample`` to its end with one image, against what torch alone takes.

    python benchmarks/start_time.py [--repeats 5]

Prints the medians, in alternation, of a process that imports torch, of one that also loads the bundled Fashion-MNIST
generator, and of the command that draws one image with it, and the ratio of the last two.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile

LOAD = "from onestep.models.loading import load_generator; load_generator('fashion')"
SAMPLE = ("-m", "onestep", "sample", "checkpoint=fashion", "count=1", "device=cpu", "precision=no", "format=png")


def seconds(*arguments: str) -> float:
    """Processor seconds (user and system) of a Python process."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the start of onestep sample.")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each kind (default 5)")
    repeats = parser.parse_args().repeats
    commands = {
        "import torch": ("-c", "import torch"),
        "import torch and load the network": ("-c", LOAD),
        "onestep sample, one image": SAMPLE,
        "onestep --help": ("-m", "onestep", "--help"),
        "onestep train --help": ("-m", "onestep", "train", "--help"),
    }
    measured: dict[str, list[float]] = {title: [] for title in commands}
    for _ in range(repeats):
        for title, arguments in commands.items():
            measured[title].append(seconds(*arguments))
    medians = {title: statistics.median(values) for title, values in measured.items()}
    for title, value in medians.items():
        print(f"{title:35} {value:6.2f} s")
    _, load, sample, *_ = medians.values()
    print(f"{'sample against load':35} {sample / load:6.2f}")


if __name__ == "__main__":
    main()

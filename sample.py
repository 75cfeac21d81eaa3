"""Draw images from a trained generator or its teacher. ``python sample.py --help`` shows the choices."""

from pathlib import Path

from onestep.config import run_entry_point
from onestep.training.sampling import sample

if __name__ == "__main__":
    run_entry_point(sample, str(Path(__file__).parent / "conf"), "sample")

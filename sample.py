"""Draw images from a trained generator or its teacher. ``python sample.py --help`` shows the choices."""

from onestep.build.sampling import sample
from onestep.config import run_entry_point

if __name__ == "__main__":
    run_entry_point(sample, "sample")

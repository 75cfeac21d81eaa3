"""Train: distill a teacher into a one-step generator, or pretrain one. ``python train.py --help`` shows the choices."""

from onestep.config import run_entry_point, run_task

if __name__ == "__main__":
    run_entry_point(run_task, "train")

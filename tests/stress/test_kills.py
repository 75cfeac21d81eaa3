"""A run that is killed at any moment and resumed is the same run."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from onestep.build.distillation import distill
from onestep.distillation.report import DistillationReport
from onestep.engine.signals import STOPPED
from tests.helpers.configs import tiny_config
from tests.helpers.harness import assert_same_run, is_saving, kill, last_iteration, newest_intact, wait_until
from tests.stress.conftest import StartRun, Survived

OVERRIDES = (
    "training.checkpoint_every=3",
    "training.log_every=2",
    "training.evaluate_every=20",
    "training.keep_last=2",
)


@pytest.fixture(autouse=True)
def without_final_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are compared by their checkpoints and logs; their final samples take longer than their iterations."""
    monkeypatch.setattr(DistillationReport, "final", lambda *_: {})


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_and_resumed(kills: int, start_run: StartRun, survived: Survived, tmp_path: Path) -> None:
    """Half of the kills while a checkpoint is being written, the others at random between 0 and 5 iterations."""
    chance = random.Random(0)
    # An iteration is behind the last checkpoint by 3 at most, and a checkpoint that is being written by 3 more.
    overrides = (*OVERRIDES, f"training.total_images={16 * (12 + 3 * kills)}")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    distill(tiny_config(straight, *overrides))
    lost, while_saving = [], 0
    for attempt in range(kills):
        process = start_run(tiny_config(killed, *overrides, "resume=auto"))
        begun, at_save = newest_intact(killed), attempt % 2 == 0
        wait_until(lambda: last_iteration(killed) > begun or process.exitcode is not None)  # noqa: B023
        if at_save:
            wait_until(lambda: is_saving(killed) or process.exitcode is not None)  # noqa: B023
            time.sleep(chance.uniform(0, 0.004))
        else:
            goal = last_iteration(killed) + chance.randint(0, 5)
            wait_until(lambda: last_iteration(killed) >= goal or process.exitcode is not None)  # noqa: B023
            time.sleep(chance.uniform(0, 0.03))
        kill(process)
        process.join()
        while_saving += is_saving(killed)
        left = newest_intact(killed)
        assert left >= begun
        lost.append(last_iteration(killed) - left)
    distill(tiny_config(killed, *overrides, "resume=auto"))
    assert_same_run(straight, killed)
    assert while_saving > kills / 10
    assert max(lost) <= 6
    survived("SIGKILL at random", kills, kills, f"at most {max(lost)} iterations, {sum(lost) / kills:.1f} on average, "
             f"with a checkpoint every 3; {while_saving} kills while saving")  # fmt: skip


@pytest.mark.parametrize("name", ["SIGTERM", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGINT", "SIGUSR1"))])
def test_a_signal_ends_the_iteration_and_saves(
    name: str, start_run: StartRun, survived: Survived, tmp_path: Path
) -> None:
    """Sent to all processes of a run, as Slurm and torchrun do: the one that reads its data leaves it to its parent."""
    overrides = (*OVERRIDES, "training.total_images=192", "training.checkpoint_every=100")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    distill(tiny_config(straight, *overrides))
    process = start_run(tiny_config(stopped, *overrides, "num_workers=1"))
    wait_until(lambda: last_iteration(stopped) >= 4)
    (reader,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(reader), signal.Signals[name])
    kill(process, signal.Signals[name])
    process.join()
    assert process.exitcode == STOPPED == 75
    assert newest_intact(stopped) >= last_iteration(stopped) >= 4
    distill(tiny_config(stopped, *overrides, "resume=auto"))
    assert_same_run(straight, stopped)
    survived(name, 1, 1, "0 iterations")

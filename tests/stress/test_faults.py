"""What else can happen in days: disks, bits, numbers and machines that fail."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onestep.build.distillation import build_distillation, distill
from onestep.distillation import loop
from onestep.distillation.method import Method
from onestep.engine.checkpoint import list_checkpoints
from onestep.engine.log import read_log
from onestep.engine.signals import STOPPED
from onestep.objectives.losses import Losses
from tests.helpers.configs import CPU, tiny_config
from tests.helpers.harness import (
    assert_same_run,
    is_saving,
    kill,
    last_iteration,
    newest_intact,
    start_workers,
    wait_until,
)  # fmt: skip
from tests.stress.conftest import StartRun, Survived

OVERRIDES = (
    "training.total_images=192",
    "training.evaluate_every=100",
    "training.checkpoint_every=2",
    "training.keep_last=3",
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with nothing done to it."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    distill(tiny_config(folder, *OVERRIDES))
    return folder


def go_on(run: Path, *overrides: str) -> None:
    distill(tiny_config(run, *OVERRIDES, "resume=auto", *overrides))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
@pytest.mark.parametrize("fault, damage", [("a byte flipped", flip), ("cut short", cut), ("deleted", Path.unlink)])
def test_damaged_files(
    fault: str, damage: Callable[[Path], None], straight: Path, survived: Survived,
    tmp_path: Path
) -> None:  # fmt: skip
    """Of each file in the newest checkpoint in turn: the run goes on from the one before, 2 iterations earlier."""
    names = sorted(path.name for path in list_checkpoints(straight)[-1].iterdir())
    for name in names:
        run = tmp_path / name
        shutil.copytree(straight, run)
        damage(list_checkpoints(run)[-1] / name)
        with pytest.warns(UserWarning, match="is damaged and skipped"):
            go_on(run)
        assert_same_run(straight, run)
    survived(f"a checkpoint's file {fault}", len(names), len(names), "2 iterations, of a checkpoint every 2")


@pytest.mark.slow
@pytest.mark.parametrize("spare", [1.5, 0.4])
def test_full_disk(spare: float, straight: Path, start_run: StartRun, survived: Survived, tmp_path: Path) -> None:
    """A file system of a few checkpoints' size, filled beforehand or by the run itself."""
    disk, run = tmp_path / "disk", tmp_path / "disk" / "run"
    disk.mkdir()
    size = sum(file.stat().st_size for file in list_checkpoints(straight)[-1].iterdir())
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int((3 + spare) * size + 2**20)}", "tmpfs", disk])
    if mounted.returncode:
        pytest.skip("no right to mount a file system")
    try:
        process = start_run(tiny_config(run, *OVERRIDES))
        wait_until(lambda: newest_intact(run) >= 4)
        (disk / "ballast").write_bytes(bytes(max(0, shutil.disk_usage(disk).free - int(spare * size))))
        process.join()
        assert process.exitcode == 1 and not is_saving(run)
        kept = newest_intact(run)
        assert kept >= 4
        (disk / "ballast").unlink()
        go_on(run, "training.keep_last=1")
        assert_same_run(straight, run)
    finally:
        subprocess.run(["umount", disk], check=True)
    survived(f"a disk with room for {spare} checkpoints", 1, 1, "none before the last checkpoint")


@pytest.mark.slow
def test_signals_during_saving(straight: Path, start_run: StartRun, survived: Survived, tmp_path: Path) -> None:
    codes = []
    for attempt, times in enumerate((1, 2, 1, 2)):
        run = tmp_path / str(attempt)
        process = start_run(tiny_config(run, *OVERRIDES))
        wait_until(lambda: newest_intact(run) >= 2 and is_saving(run))  # noqa: B023
        for number in (signal.SIGTERM, signal.SIGINT)[:times]:
            kill(process, number)
            time.sleep(0.002)
        process.join()
        codes.append(process.exitcode)
        assert newest_intact(run) >= 2
        go_on(run)
        assert_same_run(straight, run)
    # Of two that wait while the process is busy Python handles the lower number first, so either may be the second.
    assert codes[0::2] == [STOPPED] * 2
    assert set(codes[1::2]) <= {STOPPED, 128 + signal.SIGINT, 128 + signal.SIGTERM}
    survived(
        "SIGTERM while saving, SIGINT behind it or not", 4, 4, "0 iterations; both: those after the last checkpoint"
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_one_of_two_processes_is_lost(how: signal.Signals, survived: Survived, tmp_path: Path) -> None:
    """The other one ends by itself, within the timeout, and says why."""
    timeout = 20
    settings = (
        "float32", CPU, "precision=no", f"process_timeout={timeout}", f"output={tmp_path}",
        "training.total_images=64000", "training.batch_size=16", "training.log_every=1", "training.checkpoint_every=2",
    )  # fmt: skip
    workers = start_workers(2, *settings)
    try:
        wait_until(lambda: last_iteration(tmp_path) >= 5, seconds=120)
        workers[1].send_signal(how)
        begun = time.monotonic()
        said, _ = workers[0].communicate(timeout=timeout + 30)
        seconds = time.monotonic() - begun
    finally:
        for worker in workers:
            worker.kill()
    assert (
        workers[0].returncode == 1
        and "process 0 failed, perhaps because another one died" in said
        and "resume=auto" in said
    )
    iterations = last_iteration(tmp_path) - newest_intact(tmp_path)
    assert newest_intact(tmp_path) >= 2 and iterations <= 4
    survived(
        f"one of two processes: {how.name}", 1, 1, f"{iterations} iterations; the other ended after {seconds:.0f} s"
    )


@dataclass
class BreakingMethod(Method):
    """One whose fourth real sample is not a number in some of the updates of the critics, counted from 0."""

    broken: Container[int] = ()
    updates: int = 0

    def critic_losses(self, x_generated: Tensor, x_real: Tensor | None, *others: Any, **named: Any) -> Losses:
        if self.updates in self.broken and x_real is not None:
            x_real = x_real.clone()
            x_real[3] = torch.nan
        self.updates += 1
        return super().critic_losses(x_generated, x_real, *others, **named)


@pytest.mark.parametrize("bad, rollbacks", [(2, 0), (3, 1)])
def test_numbers_that_are_not_finite(
    bad: int, rollbacks: int, survived: Survived, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """In ``bad`` iterations in a row, of 3 that would be too many: skipped, and named; or back to a checkpoint."""
    overrides = (*OVERRIDES, "training.max_skipped_steps=3", f"training.rollbacks={rollbacks}")
    parts = build_distillation(tiny_config(tmp_path, *overrides))
    parts.method = BreakingMethod(**vars(parts.method), broken=range(5, 5 + bad))
    critics, iterations = parts.optimizers["critics"], list[int]()
    step = critics.step

    def step_and_count(iteration: int) -> dict[str, Tensor]:
        iterations.append(iteration)
        return step(iteration)

    monkeypatch.setattr(critics, "step", step_and_count)
    with pytest.warns(
        UserWarning, match="non-finite value in iteration 5: .*'discriminator': nan.*'position': 3, 'sigma'"
    ):
        loop.distill(parts)
    lines = read_log(tmp_path / "log.jsonl")
    if rollbacks:
        assert iterations == [*range(8), *range(4, 12)]  # the checkpoint before iteration 5 is that after 4
        assert [line["iteration"] for line in lines if "rollback" in line] == [4]
    else:
        skipped = [line for line in lines if "skipped_step" in line]
        assert [line["iteration"] for line in skipped] == [6, 7] and iterations == list(range(12))
        (sample,) = skipped[0]["samples"]
        assert sample["term"] == "discriminator" and sample["sigma"] > 0 and sample["index"] < 1797
    assert [line["iteration"] for line in lines if "loss" in line] == [
        c for c in range(1, 13) if rollbacks or c not in (6, 7)
    ]
    survived("NaN in a sample", bad, bad, "rolled back 3 iterations" if rollbacks else "the skipped steps alone")

"""The entry point of the commands: sweeps with jobs that fail, and folders that Hydra cannot write."""

from pathlib import Path

import pytest
from omegaconf import DictConfig

from onestep.entry import run_entry_point


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["onestep"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)


def test_a_failed_job_does_not_end_a_sweep(capfd: pytest.CaptureFixture[str]) -> None:
    ran = []

    def job(config: DictConfig) -> None:
        ran.append(config.seed)
        if config.seed == 1:
            raise ZeroDivisionError("of a bug")

    with pytest.raises(SystemExit) as caught:
        run_entry_point(job, "train", ["-m", "training.batch_size=abc,64", "seed=1,2", "device=cpu"])
    assert ran == [1, 2]
    errors = capfd.readouterr().err
    refused = next(line for line in errors.splitlines() if "batch_size" in line).removeprefix("error: ")
    assert str(caught.value).splitlines() == [
        "error: 3 of 4 jobs of the sweep failed:",
        f"  training.batch_size=abc seed=1: {refused}",
        f"  training.batch_size=abc seed=2: {refused}",
        "  training.batch_size=64 seed=1: ZeroDivisionError: of a bug",
    ]
    assert errors.count(f"error: {refused}\n") == 2 and errors.count("error: ZeroDivisionError: of a bug\n") == 1
    assert errors.count("Traceback") == 1 and "in job\n" in errors  # of the unexpected error


@pytest.mark.parametrize("stop", [SystemExit(75), KeyboardInterrupt()])
def test_a_stopped_job_ends_the_sweep(stop: BaseException) -> None:
    ran = []

    def job(config: DictConfig) -> None:
        ran.append(config.seed)
        raise stop

    with pytest.raises(SystemExit) as caught:
        run_entry_point(job, "sample", ["-m", "seed=1,2"])
    assert ran == [1] and caught.value.code == (75 if isinstance(stop, SystemExit) else 130)


@pytest.mark.parametrize("place", ["/proc/x", "file", "file/run", "log"])
def test_a_folder_that_hydra_cannot_write(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "log" / "onestep.log").mkdir(parents=True)  # Hydra's log
    with pytest.raises(SystemExit, match=r"^error: the folder of the run cannot be written \(.*\): choose another with "
                       r"hydra\.run\.dir=\.\.\., of a sweep with hydra\.sweep\.dir=\.\.\.$"):  # fmt: skip
        run_entry_point(lambda config: pytest.fail("it ran"), "sample", [f"hydra.run.dir={place}"])


def test_default_folders_differ(tmp_path: Path) -> None:
    """Also those of runs that start within one second."""
    for _ in range(3):
        run_entry_point(lambda config: None, "sample", [])
    assert len(list((tmp_path / "outputs" / "samples").iterdir())) == 3

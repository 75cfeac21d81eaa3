"""The entry point of the commands: sweeps with jobs that fail, and folders that Hydra cannot write."""

import re
import socket
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from onestep.build.run import started_run
from onestep.build.sampling import _place
from onestep.engine.folder import locked
from onestep.entry import options_first, quote_values, run_entry_point


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


def test_the_folders_of_a_sweep_need_no_quotes(tmp_path: Path) -> None:
    """Whatever the values are, and however long; each job has a folder of its own below the sweep's."""
    long = "x" * 300
    swept = ["-m", "seed=1", "classes=[3,7]", f"run=/a/b,'é (1)=,$',{long}"]
    run_entry_point(lambda config: None, "sample", swept)
    (sweep,) = (tmp_path / "outputs").iterdir()
    names = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert (
        len(names) == 3
        and "classes-_3_7_" in names[0]
        and all("+seed-1" in name or long[:99] in name for name in names)
    )
    for name in names:
        override = OverridesParser.create().parse_override(f"run={sweep / name}")
        assert override.value() == str(sweep / name) and not override.is_sweep_override()


@pytest.mark.parametrize(
    "value",
    [
        "/a b",
        "/a,b=c",
        "a[1]{2}",
        "ä ü%20#x=1",
        "it's",
        'q"q',
        'q\\"q"',
        "a(b)",
        "a\\b",
        "a,b\\",
        "a:b",
        "~/x",
        "/$x",
        "a*?",
        "é,",
        "1)",
    ],
)
def test_values_need_no_quotes_of_hydra(value: str) -> None:
    """What a shell hands over as one word reaches the program as it is."""
    (word,) = quote_values([f"run={value}"])
    override = OverridesParser.create().parse_override(word)
    assert override.value() == value and not override.is_sweep_override()


def test_words_that_stay(tmp_path: Path) -> None:
    words = ["-m", "--config-dir", "/a,b=c", "seed=1,2", "classes=[3,7]", "~data", "+a.b={c: 1}", "prompts=['a, b']"]
    assert quote_values(words) == words
    with pytest.raises(ValueError, match=r"\$\{oc\.env:HOME\}.*a prompt is text"):
        quote_values(["prompts=['${oc.env:HOME}']"])
    with pytest.raises(ValueError, match=r"classes=\[3, cannot be read \(.*quote the texts in it"):
        quote_values(["classes=[3,"])


@pytest.mark.parametrize(
    ("command", "word", "message"),
    [
        (
            "train",
            "metrics=[foo]",
            "unknown choice metrics=foo. The choices are: clip_iqa, clip_iqa_vit, clip_score, consi",
        ),
        (
            "train",
            "objective=sidd",
            "unknown choice objective=sidd; did you mean 'sid'? The choices are: ",
        ),
        (
            "train",
            "experiment=pretrain/digits",
            "experiment=pretrain/digits is for onestep pretrain, not for onestep",
        ),
        ("pretrain", "experiment=digits", "experiment=digits is for onestep train, not for onestep pretrain"),
        (
            "pretrain_features",
            "experiment=pretrain/fashion",
            "experiment=pretrain/fashion is for onestep pretrain, ",
        ),
    ],
)
def test_choices_that_a_command_does_not_have(command: str, word: str, message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run_entry_point(lambda config: pytest.fail("it ran"), command, [word])
    (line,) = str(caught.value.code).splitlines()
    assert line.startswith(f"error: {message}")


def test_options_stand_anywhere() -> None:
    words = ["seed=1", "-m", "classes=[3]", "--config-dir", "/a=b", "--cfg", "job", "~data"]
    assert options_first(words) == ["-m", "--config-dir", "/a=b", "--cfg", "job", "seed=1", "classes=[3]", "~data"]


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
    for _ in range(2):
        run_entry_point(lambda config: None, "sample", [])
    assert len(list((tmp_path / "outputs" / "samples").iterdir())) == 2


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (0, r"process 0 of 2 waited 0\.5 s at the start for process 1, which has ended or hangs: start all"),
        (1, r"process 1 of 2 found no main process at 127\.0\.0\.1:[0-9]+ within 0\.5 s: start all"),
    ],
)
def test_a_process_that_is_missing_at_the_start(rank: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("onestep.entry._START_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        run_entry_point(lambda config: pytest.fail("it ran"), "sample", [])
    (line,) = str(caught.value.code).splitlines()
    assert re.match(f"error: {expected}", line) and time.monotonic() - began < 10


@pytest.mark.parametrize("command", ["train", "sample"])
def test_a_refused_start_leaves_the_record_of_the_run_there(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a run, or samples, in the folder: what Hydra recorded of it stays; a good start has a record."""

    def start(config: DictConfig) -> None:
        if command == "sample":
            _place(config)
        else:
            with started_run(config):
                pass

    words = ["hydra.run.dir=run", "device=cpu"]
    run_entry_point(start, command, [*words, "seed=1"])
    files = {path.name: path.read_text() for path in Path("run/.hydra").iterdir()}
    assert files.keys() == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert "- seed=1" in files["overrides.yaml"] and "seed: 1\n" in files["config.yaml"]
    assert "dir: run" in files["hydra.yaml"]
    Path("run/000000.png").touch()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with locked(tmp_path / "run"), pytest.raises(SystemExit, match="in use by another run|it holds 1 other files"):
        run_entry_point(start, command, [*words, "seed=2"])
    assert {path.name: path.read_text() for path in Path("run/.hydra").iterdir()} == files

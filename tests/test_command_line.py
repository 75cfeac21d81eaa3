"""The command ``onestep`` and the repository's scripts, in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from onestep.commands import COMMANDS, CONFIGURED, main
from onestep.config import CONF
from tests.helpers.configs import CPU
from tests.helpers.paths import REPOSITORY
from tests.helpers.scripts import run_python

OBJECTIVES = sorted(file.stem for file in (CONF / "objective").glob("*.yaml"))
# Runs a command, which must not import packages with an import time of seconds.
LIGHTLY = """
import sys
from onestep.commands import main
assert "hydra" not in sys.modules  # an interruption of its import would be a traceback
main(sys.argv[1:])
assert not {"torch", "diffusers", "accelerate", "numpy"} & sys.modules.keys()
"""
# Bash's completions of $1, with the completion script that $2 prints.
TAB = """
eval "$($2 --shell-completion install=bash)"
COMP_LINE="$1" COMP_POINT=${#1} words=($1)
COMP_CWORD=$((${#words[@]} - 1))
if [[ "$1" == *" " ]]; then COMP_CWORD=${#words[@]}; fi
hydra_bash_completion
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with the commands ``onestep``, as installed by pip, and ``python``."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "onestep").write_text(f"#!{sys.executable}\nfrom onestep.commands import main\nmain()\n")
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for file in folder.iterdir():
        file.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, process_as_it_was: None) -> None:
    """What a command changes of its process is restored."""
    monkeypatch.setattr("sys.argv", ["onestep"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setenv("COMP_LINE", "")


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The output of ``onestep``, without an import of torch."""
    return run_python("-c", LIGHTLY, *arguments, PYTHONPATH=str(REPOSITORY), **environment)


def test_an_interruption_of_the_imports(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "onestep.entry":
                signal.raise_signal(signal.SIGINT)

    monkeypatch.delitem(sys.modules, "onestep.entry", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as caught:
        main(["train"])
    assert (caught.value.code, capsys.readouterr().err) == (130, "interrupted by SIGINT\n")


def test_help_lists_the_commands() -> None:
    finished = run_command("--help")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert [line.split("  ")[1] for line in finished.stdout.splitlines() if line[:2] == "  "] == list(COMMANDS)
    assert run_command().stdout == finished.stdout
    assert run_command("--version").stdout == "onestep 0.1.0\n"
    assert run_python("-m", "onestep", "--help").stdout == finished.stdout


@pytest.mark.parametrize("name", CONFIGURED)
def test_help_lists_the_groups(name: str, here: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*name.split(), "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    lines = printed.split("The configuration with", 1)[0].splitlines()
    groups = dict(line.split(": ", 1) for line in lines if ": " in line)
    # An upscaling has settings alone.
    for group in (
        ("objective", "divergence", "discriminator", "teacher", "sampler", "metrics") if name != "upscale" else ()
    ):
        assert groups[group].split(", ") == sorted(file.stem for file in (CONF / group).glob("*.yaml"))
    assert f"  onestep {name}" in printed


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in CONFIGURED])
def test_help_of_the_others(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: onestep {name} ")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'? The commands are: train, pretrain, pretrain feat"),
        (["objective=sid"], "unknown command 'objective=sid'. The commands are: train, pretrain, "),
        (["compare", "nowhere", "out"], "nowhere holds no finished run"),
        (["train", "objective=sid,null"], "objective=sid,null: a choice is needed, one of adversarial, "),
    ],
)
def test_mistakes(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert str(caught.value.code).startswith(f"error: {message}")


@pytest.mark.parametrize("script", ["train", "sample"])
def test_a_script_is_the_command_of_its_name(script: str) -> None:
    shown = ("--cfg", "job", "seed=7", "features=null")
    by_script = run_python(str(REPOSITORY / f"{script}.py"), *shown).stdout
    assert "seed: 7" in by_script and "features: null" in by_script
    assert by_script == run_command(script, *shown).stdout


@pytest.mark.parametrize(
    "typed, expected",
    [
        ("onestep pr", ["pretrain", "profile"]),
        ("onestep train objective=", [f"objective={name}" for name in OBJECTIVES]),
        ("onestep train teacher=null objective=si", [""]),  # not a valid configuration
        ("python train.py objective=", [f"objective={name}" for name in OBJECTIVES]),
        ("python sample.py see", ["seed=", "seed_ranges="]),
    ],
)  # fmt: skip
def test_bash_completes(typed: str, expected: list[str], path: str) -> None:
    program = "onestep" if typed.startswith("onestep") else " ".join(typed.split()[:2])
    finished = subprocess.run(
        ["bash", "-c", TAB, "bash", typed, program],
        capture_output=True, text=True, cwd=REPOSITORY, env=os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert finished.stderr == ""
    assert finished.stdout.splitlines() == expected


@pytest.mark.parametrize(
    "typed, expected",
    [
        ("onestep ", ["train", "pretrain", "sample", "upscale", "export", "demo", "convert", "report", "compare",
                      "profile"]),
        ("onestep pretrain f", ["features", "features.", "features=", "features_cache="]),
        ("onestep train features=null objective=sid", ["objective=sid", "objective=sid_lsg", "objective=sida"]),
        ("onestep train training.total", ["training.total_images="]),
        ("onestep train experiment=pretrain/f", ["experiment=pretrain/fashion"]),
        ("onestep pretrain features experiment=features/d", ["experiment=features/digits"]),
        ("onestep sample see", ["seed=", "seed_ranges="]),
    ],
)  # fmt: skip
def test_completions(
    typed: str, expected: list[str], here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", typed)
    main(["-sc", "query=bash"])
    assert capsys.readouterr().out.split() == expected


def test_completion_needs_no_torch() -> None:
    finished = run_command("-sc", "query=bash", COMP_LINE="onestep train objective=si")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "objective=sid " in finished.stdout


def test_a_reader_that_ends_early() -> None:
    """``| head`` gets the start of a text, and there is no other word."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    for words in ("--help", "sample --help"):
        command = f"{sys.executable} -m onestep {words} | head -1"
        finished = subprocess.run(
            command, shell=True, capture_output=True, text=True, cwd=REPOSITORY, env=environment
        )  # fmt: skip
        assert finished.stderr == "" and len(finished.stdout.splitlines()) == 1


def test_from_the_command_line(tmp_path: Path) -> None:
    small = (CPU, "precision=bf16", "training.total_images=32", "training.batch_size=16", "sampler.steps=2",
             "evaluation.samples=16", "evaluation.grid=10", "pairs.count=32")  # fmt: skip
    trained = run_python(str(REPOSITORY / "train.py"), f"hydra.run.dir={tmp_path / 'run'}", *small)
    assert trained.returncode == 0, trained.stderr
    assert "teacher" in trained.stdout and str(tmp_path / "run").replace("\n", "") in trained.stdout.replace("\n", "")
    networks = load_file(tmp_path / "run" / "checkpoints" / "iteration_00000002" / "generator.safetensors")
    assert {value.dtype for value in networks.values()} == {torch.float32}  # only the computation is in bf16
    # Importing diffusers, with transformers and torch's compiler, takes longer than torch, and matplotlib a tenth.
    arguments = ["sample", f"run={tmp_path / 'run'}", "count=2", f"hydra.run.dir={tmp_path / 'images'}", CPU]
    unneeded = ["diffusers", "transformers", "peft", "matplotlib", "sklearn", "torchmetrics", "torch._dynamo", "sympy"]
    code = f"""
import sys
from onestep.commands import main
main({arguments})
print("imported:", sorted(set({unneeded}) & sys.modules.keys()))
"""
    finished = run_python("-c", code, cwd=tmp_path)
    assert finished.stdout.splitlines()[-1:] == ["imported: []"], finished.stderr
    assert (tmp_path / "images" / "000001.png").is_file()

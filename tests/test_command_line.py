"""The scripts, as a user starts them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from onestep.config import CONF
from tests.scripts import REPOSITORY, run_python


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_help_lists_the_groups(script: str) -> None:
    finished = run_python(str(REPOSITORY / script), "--help")
    assert finished.returncode == 0
    lines = finished.stdout.split("The configuration that", 1)[0].splitlines()
    groups = dict(line.split(": ", 1) for line in lines if ": " in line)
    for group in ("objective", "divergence", "discriminator", "teacher", "sampler", "metrics"):
        assert groups[group].split(", ") == sorted(file.stem for file in (CONF / group).glob("*.yaml"))
    assert f"  python {script}" in finished.stdout


def test_from_the_command_line(tmp_path: Path) -> None:
    small = ("device=cpu", "precision=bf16", "training.total_images=32", "training.batch_size=16", "sampler.steps=2",
             "evaluation.samples=16", "evaluation.grid=10")  # fmt: skip
    trained = run_python(str(REPOSITORY / "train.py"), f"hydra.run.dir={tmp_path / 'run'}", *small)
    assert trained.returncode == 0, trained.stderr
    assert "teacher" in trained.stdout and str(tmp_path / "run").replace("\n", "") in trained.stdout.replace("\n", "")
    networks = load_file(tmp_path / "run" / "checkpoints" / "iteration_00000002" / "generator.safetensors")
    assert {value.dtype for value in networks.values()} == {torch.float32}  # bf16 is the computation's alone
    images = ("count=2", f"run={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'images'}", "device=cpu")
    drawn = run_python(str(REPOSITORY / "sample.py"), *images)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "images" / "000001.png").is_file()

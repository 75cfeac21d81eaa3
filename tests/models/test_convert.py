"""From a file of EDM's format to a folder of safetensors, on the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from onestep.commands import main
from onestep.models.edm.checkpoint import load_edm
from onestep.models.generator import Generator, load_denoiser
from onestep.models.loading import load_generator, load_teacher
from tests.helpers.paths import REFERENCE

SID = REFERENCE / "sid_ddpmpp_cond10_16.pkl"


def test_a_generator_folder_draws_the_recorded_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "models" / "sid"
    main(["convert", str(SID), str(folder), "--sigma-init", "2.5"])
    assert capsys.readouterr().out == f"{folder}: 189,667 parameters\n"
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json", "diffusion_pytorch_model.safetensors", "generator.json",
    ]  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == ["sid"]  # nothing is left beside it
    with np.load(SID.with_suffix(".npz")) as arrays, torch.no_grad():
        latents, labels = torch.from_numpy(arrays["latents"]), torch.from_numpy(arrays["sampler_class_labels"])
        expected = torch.from_numpy(arrays["G_out"]).flatten(1)
        images = Generator.from_pretrained(folder)(latents, {"labels": labels}).double().flatten(1)
    assert ((images - expected).abs().amax(1) / expected.abs().amax(1)).max() <= 1e-5
    assert load_generator(folder, 2.5).sigma_init == 2.5
    with pytest.raises(ValueError, match=r"sid holds a generator for sigma_init=2\.5, not 1\.0"):
        load_generator(folder, 1.0)


def test_a_teacher_folder_holds_the_files_weights(tmp_path: Path) -> None:
    main(["convert", str(SID), str(tmp_path / "teacher")])
    ours, original = load_denoiser(tmp_path / "teacher").state_dict(), load_edm(SID).state_dict()
    assert ours.keys() == original.keys() and all(torch.equal(ours[key], original[key]) for key in ours)
    for path in (SID, tmp_path / "teacher"):
        teacher = load_teacher(str(path), guidance=1.0)
        assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "broken.pkl").write_bytes(SID.read_bytes()[:5000])
    for arguments, message in (
        ([SID, tmp_path], "already exists: give a new folder"),
        ([tmp_path / "absent.pkl", tmp_path / "out"], "no such file"),
        ([tmp_path / "broken.pkl", tmp_path / "out"], "broken.pkl cannot be read: "),
        ([SID, tmp_path / "out", "--sigma-init", "0"], r"sigma_init=0\.0 is outside the noise levels"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            main(["convert", *map(str, arguments)])
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pkl"]
    with pytest.raises(ValueError, match=r"pkl does not contain the noise level .* set sigma_init=\.\.\., .* 2\.5 for"):
        load_generator(SID)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    printed = capsys.readouterr().out
    assert "FILE FOLDER" in printed and "--sigma-init SIGMA" in printed

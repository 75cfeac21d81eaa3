"""The start of the generator and the fake score from another run or another network."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from onestep.build.distillation import build_distillation
from onestep.models.loading import load_teacher
from tests.helpers.configs import refused, tiny_config
from tests.helpers.edm_models import tiny_denoiser

CHECKPOINT = "{run}/checkpoints/iteration_00000006"


def weights(network: Any) -> dict[str, torch.Tensor]:
    return {name.removeprefix("denoiser."): value for name, value in network.items()}


def assert_same(ours: Any, theirs: dict[str, torch.Tensor]) -> None:
    ours = weights(ours)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_generator_and_fake_score_go_on_from_a_checkpoint(finished_run: Path, tmp_path: Path) -> None:
    """Their weights alone, with new optimisers and a new head (the third part of DMD2's long training)."""
    folder = Path(CHECKPOINT.format(run=finished_run))
    parts = build_distillation(tiny_config(tmp_path, f"generator.init={folder}", f"fake_score.init={folder}"))
    generator, fake_score = (weights(load_file(folder / f"{name}.safetensors")) for name in ("generator", "fake_score"))
    assert parts.method.fake_score is not None and parts.method.discriminator is not None
    assert_same(parts.student.state_dict(), generator)
    assert_same(parts.method.fake_score.state_dict(), fake_score)
    assert_same(parts.averages.networks["ema"].state_dict(), generator)
    teacher = load_teacher("digits", guidance=1.0).state_dict()
    assert_same(parts.method.teacher.state_dict(), teacher)
    assert not torch.equal(*(one["model.enc.8x8_conv.weight"] for one in (generator, teacher)))
    assert not any(guard.optimizers[name].state for guard in parts.optimizers.values() for name in guard.optimizers)
    students = (parts.student, parts.method.fake_score)
    assert all(p.requires_grad for student in students for p in student.parameters())


def test_a_fake_score_starts_from_a_folder_or_a_file(finished_run: Path, tmp_path: Path) -> None:
    parts = build_distillation(tiny_config(tmp_path, f"fake_score.init={finished_run / 'generator'}"))
    assert parts.method.fake_score is not None
    expected = load_file(finished_run / "generator" / "diffusion_pytorch_model.safetensors")
    assert_same(parts.method.fake_score.state_dict(), expected)
    assert_same(parts.student.state_dict(), load_teacher("digits", guidance=1.0).state_dict())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("fake_score.init=nowhere",), "fake_score.init=nowhere: no teacher at 'nowhere': expected a folder with"),
        (("fake_score.init={other}",), "the fake_score does not fit the data: classes 3 against 10"),
        (("experiment=mixture", "fake_score.init={run}/generator"), "fake_score.network and fake_score.init="),
        (("experiment=mixture", f"fake_score.init={CHECKPOINT}"), "do not fit the fake_score: "),
        (("fake_score.init={damaged}",), "fake_score.safetensors has changed"),
        (("generator.init={damaged}",), "fake_score.safetensors has changed"),
        ((f"generator.init={CHECKPOINT}", "generator.sigma_init=2.5"), "generator for sigma_init=1.0, not 2.5"),
        (("objective=sds", f"fake_score.init={CHECKPOINT}"), "this objective has no fake score"),
    ],
)
def test_a_start_that_does_not_fit(
    overrides: tuple[str, ...], message: str, finished_run: Path, tmp_path: Path
) -> None:
    places = {"run": finished_run, "other": tmp_path / "other", "damaged": tmp_path / "damaged"}
    if any("{other}" in override for override in overrides):
        tiny_denoiser(label_dim=3).save_pretrained(places["other"])
    if any("{damaged}" in override for override in overrides):
        shutil.copytree(CHECKPOINT.format(run=finished_run), places["damaged"])
        file = places["damaged"] / "fake_score.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
    said = refused(tiny_config(tmp_path / "run", *(override.format(**places) for override in overrides)))
    assert message in said and "\n" not in said and overrides[-1].partition("=")[0].split(".")[0] in said

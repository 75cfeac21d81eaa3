"""Files of EDM's format in ``sample.py`` and ``train.py``: drawn from, distilled, and gone on from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onestep.build.distillation import build_distillation, distill
from onestep.build.sampling import sample
from onestep.evaluation import generate
from onestep.models.edm.checkpoint import load_edm
from onestep.models.generator import Generator
from onestep.samplers import HeunSampler
from onestep.seeding import seeded_inputs
from tests.helpers.configs import configure, tiny_config
from tests.helpers.edm_format import pickled, snapshot
from tests.helpers.edm_models import tiny_denoiser
from tests.helpers.paths import REFERENCE

SID = REFERENCE / "sid_ddpmpp_cond10_16.pkl"


def pixels_of(folder: Path, *overrides: str) -> np.ndarray:
    sample(configure("sample", *overrides, f"save_to={folder}", "format=npz"))
    return np.load(folder / "samples.npz")["images"].astype(int)


def test_a_one_step_pickle_draws_its_recorded_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[torch.Tensor]
) -> None:
    arrays = np.load(SID.with_suffix(".npz"))
    inputs = torch.from_numpy(arrays["latents"]), {"labels": torch.from_numpy(arrays["sampler_class_labels"])}
    monkeypatch.setattr(generate, "seeded_inputs", lambda *_: inputs)  # in place of those of the seeds
    images = pixels_of(tmp_path, f"checkpoint={SID}", "sigma_init=2.5", "count=3")
    expected = arrays["G_out"].reshape(3, -1)
    error = abs(drawn[0].double().flatten(1).numpy() - expected).max(1) / abs(expected).max(1)
    assert error.max() <= 1e-5
    difference = images - arrays["G_uint8"].astype(int)
    assert abs(difference).max() <= 1 and (difference != 0).mean() < 0.01  # but for one level at a rounding edge


def test_a_pickle_draws_as_a_teacher(tmp_path: Path) -> None:
    options = ("model=teacher", "teacher=local", f"teacher.path={SID}", "sampler=heun", "sampler.steps=3", "count=2")
    images = pixels_of(tmp_path, *options)
    latents, condition = seeded_inputs([0, 1], (3, 16, 16), 10)
    expected = HeunSampler(3, 0.002, 80.0)(load_edm(SID), latents, condition).permute(0, 2, 3, 1)
    assert abs(images - (expected * 127.5 + 128).clamp(0, 255).numpy().astype(int)).max() <= 1


def test_a_one_step_pickle_needs_its_noise_level(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not contain the noise level .* set sigma_init=\.\.\."):
        sample(configure("sample", f"checkpoint={SID}", f"save_to={tmp_path}"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A teacher and a generator for the digits in EDM's format, and another generator as a folder."""
    for seed, name in enumerate(("teacher", "generator")):
        network = tiny_denoiser(seed, label_dim=10)
        (tmp_path / f"{name}.pkl").write_bytes(pickled(snapshot(network)))
    Generator(tiny_denoiser(2, label_dim=10), sigma_init=1.0).save_pretrained(tmp_path / "folder")
    return {name: tmp_path / name for name in ("teacher.pkl", "generator.pkl", "folder")}


def assert_same_weights(ours: torch.nn.Module, other: torch.nn.Module) -> None:
    weights = other.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("start", ["generator.pkl", "folder"])
def test_a_run_starts_from_a_generator(start: str, files: dict[str, Path], tmp_path: Path) -> None:
    overrides = ("teacher=local", f"teacher.path={files['teacher.pkl']}", f"generator.init={files[start]}")
    parts = build_distillation(tiny_config(tmp_path / "run", *overrides))
    expected: Any = (
        load_edm(files[start]) if start.endswith("pkl") else Generator.from_pretrained(files[start]).denoiser
    )
    assert_same_weights(parts.student.denoiser, expected)
    assert all(parameter.requires_grad for parameter in parts.student.parameters())
    assert parts.method.fake_score is not None
    assert_same_weights(
        parts.method.fake_score, load_edm(files["teacher.pkl"])
    )  # it starts from the teacher all the same


def test_a_run_distills_a_pickle(files: dict[str, Path], tmp_path: Path) -> None:
    overrides = (f"teacher.path={files['teacher.pkl']}", f"generator.init={files['generator.pkl']}")
    summary = distill(tiny_config(tmp_path / "run", "teacher=local", *overrides, "training.total_images=32"))
    assert summary["images_seen"] == 32
    student = Generator.from_pretrained(tmp_path / "run" / "generator_raw").state_dict()
    start = Generator(load_edm(files["generator.pkl"]), 1.0).state_dict()
    moved = [(student[key] - value).abs().max().item() for key, value in start.items() if value.ndim == 4]
    assert 0 < max(moved) < 0.01  # two steps away from where it began


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("generator.init={folder}", "generator.sigma_init=2.5"), r"a generator for sigma_init=1\.0, not 2\.5"),
        ((f"generator.init={SID}",), r"the generator does not fit the data: channels 3 against 1"),
        (("generator.init=nowhere",), "nowhere holds no one-step generator"),
        (("experiment=mixture", "generator.init={folder}"), "generator.network and generator.init=.* are both set"),
    ],
)
def test_a_start_that_does_not_fit(
    overrides: tuple[str, ...], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    given = [override.format(folder=files["folder"]) for override in overrides]
    with pytest.raises(ValueError, match=message):
        build_distillation(tiny_config(tmp_path / "run", *given))

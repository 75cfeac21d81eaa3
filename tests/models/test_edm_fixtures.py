"""Every network file beside a recorded output: what the original code computed from it is computed here.

The files lie in ``../shared/fixtures``; some of them are copied into ``tests/reference``. Their weights are random.
EDM2's file has its weights in half precision, of which the original code computes the layers' gains too; a training
reads them in float32. Both outputs are recorded.
"""

import copy
import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from onestep.images import to_uint8
from onestep.models.edm.checkpoint import load_edm
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator
from onestep.samplers import HeunSampler
from tests.helpers.paths import REFERENCE, REPOSITORY

SHARED = REPOSITORY.parent / "shared" / "fixtures" / "edm"
FILES = {
    file.stem: file
    for folder in (REFERENCE, SHARED, SHARED.with_name("edm2"))
    for file in sorted(folder.glob("*"))
    if file.suffix in (".pkl", ".pt", ".pth", ".bin")
}
RECORDED = {name: file.with_suffix(".npz") for name, file in FILES.items() if file.with_suffix(".npz").is_file()}
TOLERANCE = 1e-5  # of each sample's largest value

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the fixtures of ../shared")
each_network = pytest.mark.parametrize("name", RECORDED)


@lru_cache
def network(name: str) -> EDMDenoiser:
    return load_edm(FILES[name])


@lru_cache
def arrays(name: str) -> dict[str, Tensor]:
    with np.load(RECORDED[name]) as file:
        return {key: torch.from_numpy(file[key]) for key in file}


def assert_equals(result: Tensor, expected: Tensor) -> None:
    result, expected = result.double().flatten(1), expected.double().flatten(1)
    assert ((result - expected).abs().amax(1) / expected.abs().amax(1)).max() <= TOLERANCE


def assert_same_pixels(images: Tensor, expected: Tensor) -> None:
    """Equal to the original's uint8 [N, H, W, C], but for the one grey level at a rounding edge."""
    difference = to_uint8(images).permute(0, 2, 3, 1).int() - expected.int()
    assert difference.abs().max() <= 1 and (difference != 0).double().mean() < 0.01


@needs_shared
@each_network
def test_weights_are_the_recorded_bytes(name: str) -> None:
    meta = FILES[name].with_suffix(".meta.json")
    if not meta.is_file():
        pytest.skip("no checksums beside this file")
    tensors = json.loads(meta.read_text())["tensors"]
    expected = {
        key.removeprefix("model.").removeprefix("unet."): (tensor["sha256"], tensor["dtype"])
        for key, tensor in tensors.items()
    }
    ours = {re.sub("^(precondition|model).", "", key): value for key, value in network(name).state_dict().items()}
    assert ours.keys() == expected.keys()
    for key, (digest, dtype) in expected.items():
        assert hashlib.sha256(ours[key].to(getattr(torch, dtype)).numpy().tobytes()).hexdigest() == digest, key


@each_network
@torch.no_grad()
def test_predictions(name: str) -> None:
    denoiser, a = network(name), arrays(name)
    if "x" not in a:
        pytest.skip("no predictions were recorded")
    labels = {"labels": a["class_labels"]} if "class_labels" in a else {}
    if "D_x_weights_f32" in a:
        assert_equals(denoiser(a["x"], a["sigma"], labels), a["D_x_weights_f32"])
        assert_equals(denoiser.model.log_variance(a["sigma"].log() / 4)[:, None], a["logvar"].flatten(1))
        denoiser = copy.deepcopy(denoiser).half()
    assert_equals(denoiser(a["x"], a["sigma"], labels), a["D_x"])
    if "D_x_aug" in a:
        assert_equals(denoiser(a["x"], a["sigma"], labels | {"augment_labels": a["augment_labels"]}), a["D_x_aug"])
    if "D_x_nolabel" in a:
        assert_equals(denoiser(a["x"], a["sigma"]), a["D_x_nolabel"])


@each_network
def test_heun_trajectory(name: str) -> None:
    denoiser, a = network(name), arrays(name)
    if "sampler_out" not in a:
        pytest.skip("no trajectory was recorded")
    sampler = HeunSampler(steps=8, sigma_min=0.002, sigma_max=80)
    assert sampler.sigmas(denoiser) == pytest.approx(a["sampler_t_steps"].tolist(), rel=1e-6)
    labels = {"labels": a["sampler_class_labels"]} if "sampler_class_labels" in a else {}
    if "sampler_out_weights_f32" in a:
        assert_equals(sampler(denoiser, a["latents"].double(), labels), a["sampler_out_weights_f32"])
        denoiser = copy.deepcopy(denoiser).half()
    images = sampler(denoiser, a["latents"].double(), labels)
    assert_equals(images, a["sampler_out"])
    assert_same_pixels(images, a["sampler_uint8"])


@each_network
@torch.no_grad()
def test_one_step_samples(name: str) -> None:
    a = arrays(name)
    if "G_out" not in a:
        pytest.skip("no one-step samples were recorded")
    generator = Generator(network(name), float(a["init_sigma"]))
    labels = {"labels": a["sampler_class_labels"]} if "sampler_class_labels" in a else {}
    images = generator(a["latents"], labels)
    assert_equals(images, a["G_out"])
    assert_same_pixels(images, a["G_uint8"])


@needs_shared
@pytest.mark.parametrize("file", sorted(SHARED.glob("mal_*")) + sorted(SHARED.glob("broken_*")), ids=lambda f: f.name)
def test_harmful_and_broken_files(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, or read without running the source code in it: nothing appears in the working folder."""
    monkeypatch.chdir(tmp_path)
    if file.name == "mal_module_src.pkl":
        assert sum(parameter.numel() for parameter in load_edm(file).parameters()) == 45_371
    else:
        with pytest.raises(ValueError, match=f"{file.name} cannot be read: (it asks for|it uses|it refers|pickle ex)"):
            load_edm(file)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, recorded, parameters",
    [("sid_ddpmpp_cond10_16", "G_out", 189_667), ("edm2_cond10_16", "D_x_weights_f32", 631_451)],
)
def test_the_copied_files(name: str, recorded: str, parameters: int) -> None:
    """So that something of the above runs wherever the tests do."""
    assert recorded in arrays(name) and FILES[name].is_file()
    assert sum(parameter.numel() for parameter in network(name).parameters()) == parameters

"""The papers' settings at their own resolutions and classes, with a tiny network in place of the published one."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onestep.build.distillation import distill
from onestep.config import check_config
from onestep.engine.log import read_log
from onestep.models.edm.checkpoint import load_edm
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator
from tests.helpers.configs import TWO_ITERATIONS, configure, tiny_config
from tests.helpers.edm_format import pickled, snapshot

OBJECTIVES = ("f_distill", "uni_instruct", "sid", "sida", "dmd2")
# Resolution, classes and architecture.
SETTINGS: dict[str, tuple[int, int, str]] = {
    "cifar10_uncond": (32, 0, "SongUNet"),
    "cifar10_cond": (32, 10, "SongUNet"),
    "imagenet64": (64, 1000, "DhariwalUNet"),
    "ffhq64": (64, 0, "SongUNet"),
    "afhqv2_64": (64, 0, "SongUNet"),
}
RUNS = (
    ("cifar10_uncond", "sid"), ("cifar10_cond", "uni_instruct"), ("imagenet64", "dmd2"), ("ffhq64", "f_distill"),
    ("afhqv2_64", "sida"),
)  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_each_setting_composes_with_each_method(setting: str, objective: str) -> None:
    config = configure("train", f"experiment=benchmark/{setting}", f"objective={objective}", "output=nowhere")
    check_config(config)
    assert config.fake_score.steps == (5 if objective == "dmd2" else 1)
    assert (config.generator.gan_weight == 0) == (objective == "sid") == (config.discriminator.head is None)
    assert config.data.use_labels == (SETTINGS[setting][1] > 0)
    # As the published figures are: in NVIDIA's Inception, of 50,000 samples.
    assert config.features._target_.endswith("InceptionFeatures") and list(config.metrics) == ["fid"]
    assert config.evaluation.samples == 50000


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes a teacher in EDM's format and a zip of eight images, of this size and with these classes."""

    def write(size: int, classes: int, architecture: str) -> tuple[Path, Path]:
        options: dict[str, Any] = {
            "model_channels": 16,
            "channel_mult": [1, 1],
            "num_blocks": 1,
            "attn_resolutions": [],
        }
        torch.manual_seed(0)
        network = EDMDenoiser((3, size, size), classes, architecture=architecture, options=options)  # type: ignore[arg-type]
        (tmp_path / "teacher.pkl").write_bytes(pickled(snapshot(network)))
        random, labels = np.random.default_rng(0), []
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for index in range(8):
                file, name = io.BytesIO(), f"00000/img{index:08d}.png"
                Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file, "PNG")
                archive.writestr(name, file.getvalue())
                labels.append([name, max(classes, 10) - 1 - index])
            archive.writestr("dataset.json", json.dumps({"labels": labels}))
        return tmp_path / "teacher.pkl", tmp_path / "data.zip"

    return write


@pytest.mark.slow
@pytest.mark.parametrize("setting, objective", RUNS)
def test_two_steps(
    setting: str, objective: str, files: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:  # fmt: skip
    teacher, data = files(*SETTINGS[setting])
    paths = (f"teacher.path={teacher}", f"data.path={data}")
    chosen = (f"experiment=benchmark/{setting}", f"objective={objective}", *paths, "features=null", "metrics=[]")
    distill(tiny_config(tmp_path / "run", *chosen, *TWO_ITERATIONS))
    lines = [line for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line]
    assert [line["images_seen"] for line in lines] == [4, 8]
    assert all(np.isfinite(list(line.values())).all() and line["generator_gradient"] > 0 for line in lines)
    student = Generator.from_pretrained(tmp_path / "run" / "generator_raw")
    start = load_edm(teacher).state_dict()
    moved = max((value - start[key]).abs().max().item() for key, value in student.denoiser.state_dict().items())
    assert 0.9e-5 < moved < 2.5e-5  # Adam's steps are at most about the rate each

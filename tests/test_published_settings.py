"""The benchmarks and recipes at their own resolutions and classes, with a tiny network for the published one."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onestep.build.distillation import distill
from onestep.config import CONF, check_config
from onestep.engine.log import read_log
from onestep.models.edm.checkpoint import load_edm
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator
from tests.helpers.configs import TWO_ITERATIONS, configure, tiny_config
from tests.helpers.edm_format import pickled, snapshot
from tests.test_recipes import RECIPES

#: Resolution, classes and architecture.
BENCHMARKS: dict[str, tuple[int, int, str]] = {
    "cifar10_uncond": (32, 0, "SongUNet"),
    "cifar10_cond": (32, 10, "SongUNet"),
    "imagenet64": (64, 1000, "DhariwalUNet"),
    "ffhq64": (64, 0, "SongUNet"),
    "afhqv2_64": (64, 0, "SongUNet"),
}


def test_the_benchmarks_are_evaluated_as_published() -> None:
    benchmarks = {file.stem for file in CONF.glob("experiment/benchmark/*.yaml")}
    assert sorted(benchmarks) == sorted([*BENCHMARKS, "imagenet512"])  # of latents
    for benchmark, (_, classes, _) in BENCHMARKS.items():
        config = configure("train", f"experiment=benchmark/{benchmark}", "objective=dmd2", "output=nowhere")
        check_config(config)
        assert config.data.use_labels == (classes > 0)
        # As the published figures are: in NVIDIA's Inception, of 50,000 samples.
        assert config.features._target_.endswith("InceptionFeatures") and list(config.metrics) == ["fid"]
        assert config.evaluation.samples == 50000


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes a teacher in EDM's format and a zip of eight images, of this size and with these classes."""

    def write(size: int, classes: int, architecture: str) -> tuple[Path, Path]:
        levels = [1] * (size.bit_length() - 3)  # down to 8x8, as in the published networks
        options = {
            "model_channels": 16,
            "channel_mult": levels,
            "num_blocks": 1,
            "attn_resolutions": [],
            "augment_dim": 9,
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
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "imagenet512" not in recipe])
def test_two_iterations(recipe: str, files: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    teacher, data = files(*next(size for name, size in BENCHMARKS.items() if recipe.partition("/")[2].startswith(name)))
    chosen = [f"experiment={recipe}", f"teacher.path={teacher}", f"data.path={data}", "features=null", "metrics=[]"]
    if configure("train", *chosen).generator.init is not None:
        chosen += ["generator.init=null", "fake_score.init=null"]
    # No warm-up, and no phase without updates of the generator.
    chosen += ["training.warmup_images=0", "generator.starts_at=0", "generator.gan_starts_at=4"]
    distill(tiny_config(tmp_path / "run", *chosen, *TWO_ITERATIONS))
    lines = [line for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line]
    assert [line["images_seen"] for line in lines] == [4, 8]
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert lines[-1]["generator_gradient"] > 0  # at first the fake score is the teacher, and DMD2's gradient 0
    folder = "generator" if recipe.startswith("dmd2/imagenet64") and "fastgen" not in recipe else "generator_raw"
    student = Generator.from_pretrained(tmp_path / "run" / folder)
    start = load_edm(teacher).state_dict()
    moved = max((value - start[key]).abs().max().item() for key, value in student.denoiser.state_dict().items())
    rate = configure("train", f"experiment={recipe}").optimizer.generator.lr
    assert 0.7 * rate < moved < 2.5 * rate  # a step of Adam is about the rate, the second after none 0.74 of it

"""The bundled text-to-image networks: the teacher of emoji, its autoencoder, and a student in one step."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onestep.build.sampling import sample
from onestep.config import instantiate
from onestep.data.prompts import PromptImages
from onestep.folders import asset_path
from onestep.images import to_uint8
from onestep.metrics.transformer_features import CLIPFeatures
from onestep.models.diffusers.autoencoder import Autoencoder
from onestep.samplers import EulerSampler
from tests.helpers.configs import configure

PROMPTS = [
    "red heart", "face", "green apple", "pizza", "car", "tree", "fire", "clock", "woman", "blue circle", "hand",
    "police car",
]  # fmt: skip


def margin_of(images: torch.Tensor, prompts: list[str]) -> float:
    """How much more similar the images are to their own prompts than to the others', in the cosine's units.

    The dual encoder took no part in the training. Images that are paired at random have a margin near 0.
    """
    network = CLIPFeatures(asset_path("emoji/agreement"))
    cosines = network(images) @ network.embed(prompts).T
    own = torch.eye(len(prompts), dtype=torch.bool)
    return float(cosines[own].mean() - cosines[~own].mean())


def test_the_autoencoder_only_shifts_and_scales() -> None:
    """The latents of all images have mean 0 and standard deviation 1, and the images come back."""
    data = PromptImages(asset_path("emoji/emoji.parquet"), "image", (32, 32))
    images, _ = data.__getitems__(range(500))
    autoencoder = Autoencoder.from_pretrained(Path(asset_path("emoji")))
    latents = autoencoder.encode(images)
    assert latents.shape == images.shape and autoencoder.downsampling == 1
    assert (autoencoder.decode(latents) - images).abs().max() < 1e-5
    assert latents.mean().abs() < 0.1 and abs(latents.std() - 1) < 0.1
    joint = torch.stack([latents[:, 0].flatten(), images[:, 0].flatten()])
    assert torch.corrcoef(joint)[0, 1] == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_the_teacher_follows_its_prompts(tmp_path: Path) -> None:
    overrides = ("teacher=emoji", f"teacher.pipeline.cache={tmp_path}")
    teacher = instantiate(configure("train", *overrides).teacher)
    conditions = teacher.pipeline.encode_prompts(PROMPTS)[list(range(len(PROMPTS)))]
    latents = torch.randn(len(PROMPTS), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = teacher.pipeline.decode(EulerSampler(8)(teacher, latents, conditions))
    assert margin_of(to_uint8(images), PROMPTS) > 0.3


def test_the_student_draws_at_once(tmp_path: Path) -> None:
    """Without a teacher or a run: the bundled pipeline of the same name has the text encoder."""
    listed = "prompts=[" + ",".join(PROMPTS) + "]"
    overrides = ("checkpoint=emoji", listed, f"count={len(PROMPTS)}", f"save_to={tmp_path / 'images'}")
    assert sample(configure("sample", *overrides))["network_evaluations"] == 1
    files = sorted((tmp_path / "images").rglob("*.png"))
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])).permute(0, 3, 1, 2)
    assert pixels.shape == (len(PROMPTS), 3, 32, 32)
    assert margin_of(pixels, PROMPTS) > 0.3
    assert margin_of(pixels.roll(1, 0), PROMPTS) < 0.1

"""A teacher that denoises the latents of images with classes (DiT), from a folder to a generator and out again."""

import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from onestep.build.distillation import distill
from onestep.build.evaluation import reference_of
from onestep.build.sampling import sample
from onestep.data.image_folder import ImageFolder
from onestep.data.latents import LatentDataset
from onestep.export.export import export
from onestep.export.pipeline import OneStepPipeline
from onestep.models.diffusers.autoencoder import Autoencoder
from onestep.models.diffusers.pipeline import TeacherPipeline
from onestep.models.generator import Generator
from onestep.seeding import seeded_inputs
from tests.helpers.configs import TWO_ITERATIONS, configure, tiny_config
from tests.helpers.diffusers_models import build_network, randomize
from tests.helpers.tiny_pipelines import vae

CLASSES = 10


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DiT pipeline, whose latents are 8 x 8."""
    folder = tmp_path_factory.mktemp("dit")
    torch.manual_seed(0)
    diffusers.DiTPipeline(build_network("dit"), randomize(vae()), diffusers.DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random images of 16 x 16 pixels, two of each class."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(2 * CLASSES):
        file = folder / f"{index // 2}" / f"{index:02d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return folder


@pytest.fixture(scope="module")
def run(dit: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished distillation of three iterations, with guidance and a discriminator."""
    folder = tmp_path_factory.mktemp("latents") / "run"
    config = tiny_config(
        folder, "teacher=diffusers", f"teacher.path={dit}", "teacher.guidance=2.0", "sampler=euler", "data=latents",
        f"data.images.path={pictures}", f"teacher.pipeline.cache={folder.parent / 'cache'}", "sigma=vp",
        "sigma@fake_sigma=vp", "features=null", "metrics=[]", "generator.sigma_init=100.0",
        *TWO_ITERATIONS, "training.total_images=12", "optimizer.generator.lr=1e-2",
    )  # fmt: skip
    distill(config)
    return folder


def test_latents_are_the_autoencoders_and_computed_once(
    dit: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageFolder(str(pictures))
    pipeline = TeacherPipeline(str(dit), None, "float32", 8, str(tmp_path))
    data = LatentDataset(images, pipeline)
    pixels, given = images.__getitems__([3, 19, 8])
    latents, condition = data.__getitems__([3, 19, 8])
    expected = Autoencoder.from_pretrained(dit).vae.encode(pixels).latent_dist.mean * 0.18215
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(condition["labels"], given["labels"]) and data.image_shape == (4, 8, 8) == tuple(
        latents.shape[1:]
    )
    assert (len(data), data.label_dim, reference_of(data)) == (20, CLASSES, images)
    decoded = Autoencoder.from_pretrained(dit).vae.decode(latents / 0.18215).sample
    torch.testing.assert_close(data.pipeline.decode(latents), decoded, rtol=1e-4, atol=1e-5)

    encoded: list[int] = []
    encode = Autoencoder.encode

    def counting(self: Autoencoder, images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Autoencoder, "encode", counting)
    assert LatentDataset(images, pipeline).fingerprint() == data.fingerprint() and encoded == []
    next(tmp_path.rglob("000002.safetensors")).unlink()  # as if it had been interrupted
    again = LatentDataset(images, pipeline)
    assert encoded == [4] and torch.equal(again.__getitems__([19])[0], data.__getitems__([19])[0])
    LatentDataset(ImageFolder(str(pictures), xflip=True), pipeline)
    assert encoded == [4, 8, 8, 8, 8, 8]


def test_what_sample_draws_is_decoded_and_so_is_the_export(run: Path, dit: Path, tmp_path: Path) -> None:
    seeds = [5, 6, 7]
    sample(configure("sample", f"run={run}", "seed=5", "count=3", f"save_to={tmp_path / 'drawn'}"))
    drawn = np.stack([np.asarray(Image.open(tmp_path / "drawn" / f"{seed:06d}.png")) for seed in seeds])
    with torch.no_grad():
        latents = Generator.from_pretrained(run / "generator")(*seeded_inputs(seeds, (4, 8, 8), CLASSES))
        decoded = Autoencoder.from_pretrained(dit).vae.decode(latents / 0.18215).sample
    expected = (decoded * 127.5 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    assert abs(drawn.astype(int) - expected).max() <= 1 and drawn.std() > 10

    pipeline = OneStepPipeline.from_pretrained(export(run, tmp_path / "exported"))
    pipeline.set_progress_bar_config(disable=True)
    assert abs(np.stack([np.asarray(image) for image in pipeline(seeds).images]).astype(int) - drawn).max() <= 1
    card = ModelCard.load(tmp_path / "exported" / "README.md").text
    assert re.search(r"\| data \| LatentDataset of ImageFolder \(pictures\d+\) \|", card)


def test_what_is_refused(run: Path, dit: Path, pictures: Path, tmp_path: Path) -> None:
    options = (f"checkpoint={run / 'generator'}", "count=1", f"save_to={tmp_path / 'drawn'}")
    with pytest.raises(ValueError, match=r"latents of 4 channels, .* set teacher=diffusers and teacher\.path"):
        sample(configure("sample", *options))
    with pytest.raises(ValueError, match="3x7x7: .* multiples of 2: set data.images.res"):
        LatentDataset(
            ImageFolder(str(pictures), resolution=7), TeacherPipeline(str(dit), None, "float32", 8, str(tmp_path))
        )


def test_a_student_of_latents_needs_no_training_images(run: Path, dit: Path, pictures: Path, tmp_path: Path) -> None:
    """The student and the teacher's pipeline are enough, by the run or without: no training image is opened."""
    options, drawn = ("seed=5", "count=2"), []
    without_run = ("teacher=diffusers", f"teacher.path={dit}", f"checkpoint={run / 'generator'}")
    away = pictures.rename(pictures.with_name("away"))
    try:
        for name, model in (("run", (f"run={run}",)), ("checkpoint", without_run)):
            sample(configure("sample", *model, *options, f"save_to={tmp_path / name}"))
            drawn.append([np.asarray(Image.open(tmp_path / name / f"{seed:06d}.png")) for seed in (5, 6)])
    finally:
        away.rename(pictures)
    with torch.no_grad():
        latents = Generator.from_pretrained(run / "generator")(*seeded_inputs([5, 6], (4, 8, 8), CLASSES))
        decoded = Autoencoder.from_pretrained(dit).vae.decode(latents / 0.18215).sample
    expected = (decoded * 127.5 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    for images in drawn:
        assert abs(np.stack(images).astype(int) - expected).max() <= 1

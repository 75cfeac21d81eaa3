"""EDM2 at 512 pixels in small: a teacher of latents with their own scaling, from its files to a student's export."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from onestep.build.distillation import distill
from onestep.build.evaluation import sample_space
from onestep.build.sampling import sample
from onestep.config import CONF, instantiate
from onestep.data.dataset import NoData
from onestep.data.image_folder import ImageFolder
from onestep.data.latents import LatentDataset
from onestep.export.export import export
from onestep.export.pipeline import OneStepPipeline
from onestep.models.diffusers.autoencoder import Autoencoder
from onestep.models.diffusers.pipeline import TeacherPipeline
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator
from onestep.models.loading import load_teacher
from onestep.seeding import seeded_inputs
from tests.helpers.configs import TWO_ITERATIONS, configure, tiny_config
from tests.helpers.diffusers_models import randomize
from tests.helpers.edm_format import numpy_array, persistent, pickled, snapshot
from tests.helpers.tiny_pipelines import vae

CLASSES = 3
MEAN = torch.tensor([5.81, 3.25, 0.12, -2.15])[:, None, None]  # of StabilityVAEEncoder
STD = torch.tensor([4.17, 4.62, 3.71, 3.28])[:, None, None]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny autoencoder alone, a teacher of its latents in EDM2's format, and images of 16 x 16 pixels."""
    folder, random = tmp_path_factory.mktemp("edm2"), np.random.default_rng(0)
    torch.manual_seed(0)
    randomize(vae()).save_pretrained(folder / "vae")
    options = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": []}
    network = EDMDenoiser((4, 8, 8), CLASSES, architecture="EDM2UNet", options=options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape) if parameter.ndim else torch.tensor(0.5))
    encoder = persistent("StabilityVAEEncoder", {"scale": numpy_array([0.1] * 4), "_vae": None})
    (folder / "edm2.pkl").write_bytes(pickled({"encoder": encoder} | snapshot(network)))
    for index in range(2 * CLASSES):
        file = folder / "images" / f"{index // 2}" / f"{index:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return {"vae": folder / "vae", "teacher": folder / "edm2.pkl", "images": folder / "images", "folder": folder}


def settings(places: dict[str, Path], *more: str) -> tuple[str, ...]:
    return (
        "teacher=edm2_imagenet512", f"teacher.path={places['teacher']}", f"teacher.pipeline.path={places['vae']}",
        f"teacher.pipeline.cache={places['folder'] / 'cache'}", *more,
    )  # fmt: skip


def images_of(places: dict[str, Path], latents: Tensor) -> np.ndarray:
    """The uint8 images [B, H, W, 3] of EDM2's decoder, rounded where it truncates."""
    decoded = Autoencoder.from_pretrained(places["vae"], changes={}).vae.decode(latents * STD / 0.5 + MEAN).sample
    return (decoded.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def test_latents_are_edm2s(places: dict[str, Path], tmp_path: Path) -> None:
    config = configure("train", *settings(places), "output=nowhere")
    pipeline: TeacherPipeline = instantiate(config.teacher.pipeline)
    data = LatentDataset(ImageFolder(str(places["images"])), pipeline)
    pixels = data.images.__getitems__([4, 1])[0]
    encoded = pipeline.autoencoder.vae.encode((pixels + 1) / 2).latent_dist.mean
    latents = data.__getitems__([4, 1])[0]
    torch.testing.assert_close(latents, (encoded - MEAN) * 0.5 / STD, rtol=1e-5, atol=1e-6)
    expected = images_of(places, latents)
    decoded = (pipeline.decode(latents) * 127.5 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    assert abs(decoded.astype(int) - expected).max() <= 1 and decoded.std() > 5
    other = TeacherPipeline(str(places["vae"]), None, "float32", 32, str(tmp_path), vae_config={"scaling_factor": 0.5})
    assert LatentDataset(data.images, other).fingerprint() != data.fingerprint()
    teacher = instantiate(config.teacher)
    assert teacher.denoises_latents and teacher.pipeline.latents_key({}) == pipeline.latents_key({})
    assert sample_space(teacher, NoData((4, 8, 8), CLASSES)).decode == teacher.pipeline.decode


def test_a_student_is_trained_sampled_and_exported(places: dict[str, Path], tmp_path: Path) -> None:
    """The export holds the autoencoder with its scaling."""
    run, seeds = tmp_path / "run", [5, 6]
    data = ("data=latents", f"data.images.path={places['images']}")
    method = ("objective=sida", "sigma=karras", "sigma@fake_sigma=log_normal", "features=null", "metrics=[]")
    distill(tiny_config(run, *settings(places, *data, *method, *TWO_ITERATIONS)))
    student = Generator.from_pretrained(run / "generator")
    assert student.denoiser.denoises_latents
    sample(configure("sample", f"run={run}", "seed=5", "count=2", f"save_to={tmp_path / 'drawn'}"))
    drawn = np.stack([np.asarray(Image.open(tmp_path / "drawn" / f"{seed:06d}.png")) for seed in seeds])
    with torch.no_grad():
        expected = images_of(places, student(*seeded_inputs(seeds, (4, 8, 8), CLASSES)))
    assert abs(drawn.astype(int) - expected).max() <= 1 and drawn.std() > 5
    exported = export(run, tmp_path / "exported")
    moved = shutil.move(places["vae"], tmp_path / "away")  # the export needs it no longer
    try:
        pipeline = OneStepPipeline.from_pretrained(exported)
        pipeline.set_progress_bar_config(disable=True)
        images = np.stack([np.asarray(image) for image in pipeline(seeds).images])
    finally:
        shutil.move(moved, places["vae"])
    assert abs(images.astype(int) - drawn).max() <= 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"latents_mean": [1.0, 2.0]}, "an autoencoder with 2 latents_mean: expected 4"),
        ({"latents_std": [1.0, 2.0, 0.0, 1.0]}, r"latents_std=\[1.0, 2.0, 0.0, 1.0\].*: expected positive numbers"),
        ({"latents_std": "wide"}, "an autoencoder with latents_std=wide: expected finite numbers"),
        ({"scaling_factor": "0.5"}, "an autoencoder with scaling_factor=0.5: expected finite numbers"),
        ({"latents_mean": [float("inf")] * 4}, "an autoencoder with latents_mean=.*: expected finite numbers"),
        ({"image_range": [1, -1]}, r"image_range=\[1.0, -1.0\]: expected .* black below white"),
        ({"latent_channels": 8}, "do not fit config.json"),
    ],
)
def test_scalings_that_are_refused(changes: dict[str, Any], message: str, places: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TeacherPipeline(str(places["vae"]), None, "float32", 8, "cache", vae_config=changes).autoencoder  # noqa: B018
    assert "\n" not in str(caught.value)


def test_latents_without_their_autoencoder(places: dict[str, Path]) -> None:
    """Found before a training, and before sampling."""
    teacher, data = load_teacher(str(places["teacher"])), NoData((4, 8, 8), CLASSES)
    with pytest.raises(ValueError, match="the teacher denoises latents; for a file of EDM2 use teacher=edm2_imagenet5"):
        sample_space(teacher, data)
    teacher.pipeline = TeacherPipeline(str(places["vae"]), None, "float32", 8, "cache", vae_config={})
    teacher.image_shape = (8, 8, 8)
    with pytest.raises(
        ValueError, match="has latents of 4 channels, and the network those of 8: set teacher.pipeline.path="
    ):
        sample_space(teacher, data)
    given = (f"checkpoint={places['teacher']}", "sigma_init=2.5", "count=1", f"save_to={places['folder'] / 'none'}")
    with pytest.raises(ValueError, match="latents of 4 channels, .* for networks of EDM2 teacher=edm2_imagenet"):
        sample(configure("sample", *given))
    with pytest.raises(ValueError, match="no autoencoder at "):
        sample(configure("sample", *given, *settings(places), "teacher.pipeline.path=a/b/c"))


def test_places_that_hold_no_autoencoder(places: dict[str, Path], tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "no autoencoder at .*: expected a folder with config.json and safetensors, or a hub id"),
        (tmp_path / "absent", "no autoencoder at .*: expected a folder with config.json and safetensors"),
        (CONF, "no autoencoder at "),
    ):
        with pytest.raises(ValueError, match=message):
            TeacherPipeline(str(path), None, "float32", 8, "cache", vae_config={}).folder  # noqa: B018

"""Coloured scenes as students: views with exact scores, and the recipes of text to 3-D with a tiny Stable Diffusion."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from onestep.build.distillation import build_distillation, distill
from onestep.build.sampling import sample
from onestep.config import instantiate
from onestep.data.view_prompts import ViewPrompts, Views
from onestep.denoiser import Condition
from onestep.engine.log import read_log
from onestep.export.export import export
from onestep.models.base import DenoiserNetwork
from onestep.models.diffusers.text_encoder import TextEncoder
from onestep.models.scene.coloured import ColouredScene
from onestep.noise import LogUniformSigma
from onestep.objectives.base import Predictions
from onestep.objectives.scenes import Emptiness, TotalVariation
from onestep.objectives.terms import TermInputs
from tests.helpers.configs import configure, refused, tiny_config
from tests.helpers.killed_run import assert_same_checkpoint, distill_until_iteration_5

Pipelines = Callable[[str], Path]


# Views with exact scores.


class Surroundings(DenoiserNetwork):
    """The exact denoiser of images that are ~ N(the render of a scene by the camera, std^2): a teacher of all views."""

    image_shape, sigma_min, sigma_max, condition_keys, std = (3, 8, 8), 0.05, 2.0, ("camera",), 0.05

    def __init__(self, scene: ColouredScene) -> None:
        super().__init__()
        self.scene = scene

    def denoise(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        mean = self.scene.render(condition["camera"], torch.zeros(len(sigma), dtype=torch.long))
        share = (self.std**2 / (self.std**2 + sigma**2))[:, None, None, None]
        return mean + share * (x_sigma - mean)


class Cameras(Dataset[tuple[Tensor, Condition]]):
    """Cameras all around as conditions, with images that no objective without a discriminator reads."""

    def __init__(self) -> None:
        self.views = Views("a thing", 45, 45, 60, [-10, 80], [2, 3])

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> tuple[Tensor, Condition]:
        return torch.zeros(3, 8, 8), {"camera": self.views.cameras[index]}


def two_halves() -> ColouredScene:
    """A box whose front is red and whose back is green, with a blue roof, before white."""
    options = {"oversampling": 1, "depth": 1.0, "randomness": 0.0, "background": 1.0, "background_size": 0}
    scene = ColouredScene([3, 8, 8], size=8, objects=1, **options).requires_grad_(False)  # type: ignore[arg-type]
    scene.logits.fill_(-10.0)
    scene.logits[:, 2:6, 2:6, 2:6] = 1.5
    scene.features.fill_(-1.0)
    scene.features[:, 0, :4], scene.features[:, 1, 4:], scene.features[:, 2, :, :3] = 1.0, 1.0, 1.0
    return scene


def test_a_scene_reaches_the_views_of_its_teacher(tmp_path: Path) -> None:
    """From cameras that the training had, and from others: the surroundings are seen, not a picture for each view."""
    target = two_halves()
    student = ColouredScene([3, 8, 8], 8, 1, 1, 1.0, 0.1, 0.0, 1)
    config = tiny_config(
        tmp_path, "objective=sds", "weighting=power", "weighting.exponent=2", "training.total_images=3200",
        "training.batch_size=16", "training.evaluate_every=1000", "training.checkpoint_every=1000",
        "optimizer.generator.lr=0.1", "optimizer.generator.betas=[0.9,0.99]", "averages.ema.halflife=100", "metrics=[]",
        "features=none", "evaluation.samples=4", "evaluation.evaluate_teacher=false", "clip.generator=null",
    )  # fmt: skip
    given = {"teacher": Surroundings(target), "data": Cameras(), "student": student}
    given["sigma"] = LogUniformSigma(0.05, 0.5)
    others = torch.tensor([[azimuth, elevation, 2.4] for azimuth in range(7, 360, 40) for elevation in (0.0, 35.0)])
    first = torch.zeros(len(others), dtype=torch.long)

    def error(scene: ColouredScene) -> float:
        with torch.no_grad():
            return float((scene.render(others, first) - target.render(others, first)).square().mean().sqrt())

    start = error(student)
    distill(config, given)
    end = error(ColouredScene.from_pretrained(tmp_path / "generator"))
    assert start > 0.5 and end < 0.06, (start, end)
    with Image.open(tmp_path / "turntable.gif") as picture:
        colours = np.asarray(picture.convert("RGB"))[4, 4]  # from the front
    assert colours[0] > 150 > 100 > colours[1]


def test_values_of_the_regularisers() -> None:
    """Of 64 voxels 16 in a layer have the opacity 1/2."""
    scene = ColouredScene([3, 8, 8], 4, 1, 1, 1.0, 0.1, 0.0, 1).requires_grad_(False)
    scene.logits.fill_(-30.0)
    scene.logits[:, :, 1] = 0.0  # softplus is log 2
    inputs = TermInputs(scene, torch.zeros(2, 3, 8, 8), None, {}, None, None, {}, None)
    assert Emptiness(1.0).losses(inputs).tolist() == pytest.approx([math.log(6) / 4] * 2, rel=1e-5)
    assert TotalVariation(1.0).losses(inputs).tolist() == pytest.approx([2 / 3 * math.log(2)] * 2, rel=1e-5)


# The recipes with a tiny Stable Diffusion.


def recipe(pipelines: Pipelines, folder: Path, experiment: str, *overrides: str) -> DictConfig:
    """Of six iterations into ``folder``; the prompt is short, as the tiny text encoder reads eight letters."""
    return tiny_config(
        folder, f"experiment={experiment}", "data.prompt=a", f"teacher.path={pipelines('sd')}", "teacher.size=8",
        f"teacher.pipeline.cache={folder.parent / 'cache'}", "student.size=6", "training.total_images=12",
        "training.batch_size=2", "training.checkpoint_every=3", "evaluation.samples=2", "evaluation.interim_samples=2",
        "evaluation.grid=2", *overrides,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(pipelines: Pipelines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of VSD."""
    folder = tmp_path_factory.mktemp("text_to_3d") / "run"
    distill(recipe(pipelines, folder, "text_to_3d"))
    return folder


def check_run(folder: Path, *, fake_score: bool) -> None:
    lines = [line for line in read_log(folder / "log.jsonl") if "loss" in line]
    assert len(lines) == 6 and all(line["generator_gradient"] > 0 for line in lines)
    assert ("fake_score_loss" in lines[0]) == fake_score
    with Image.open(folder / "turntable.gif") as picture:
        assert picture.size == (16, 16) and getattr(picture, "n_frames", 1) > 24  # decoded
    scene = ColouredScene.from_pretrained(folder / "generator")
    assert scene.image_shape == (4, 8, 8)  # latents
    with np.load(folder / "density.npz") as grids:
        assert np.array_equal(grids["features"], scene.features.detach().numpy())
        assert np.array_equal(grids["density"], scene.density.detach().numpy())


def test_the_files_of_a_run(finished: Path) -> None:
    check_run(finished, fake_score=True)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["text_to_3d_dreamfusion", "text_to_3d_sjc"])
def test_recipes_without_a_fake_score(experiment: str, pipelines: Pipelines, tmp_path: Path) -> None:
    distill(recipe(pipelines, tmp_path / "run", experiment))
    check_run(tmp_path / "run", fake_score=False)


def test_a_resumed_run_is_the_same(
    finished: Path, pipelines: Pipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = f"teacher.pipeline.cache={finished.parent / 'cache'}"
    distill_until_iteration_5(monkeypatch, recipe(pipelines, tmp_path, "text_to_3d", cache))
    distill(recipe(pipelines, tmp_path, "text_to_3d", cache, "resume=auto"))
    assert_same_checkpoint(*(folder / "checkpoints" / "iteration_00000006" for folder in (finished, tmp_path)))


def test_samples_and_export(finished: Path, tmp_path: Path) -> None:
    """Seed s has the camera of this number, and is decoded."""
    options = (f"run={finished}", "count=3", f"save_to={tmp_path / 'samples'}", "format=npz")
    assert sample(configure("sample", *options))["count"] == 3
    images = np.load(next((tmp_path / "samples").rglob("*.npz")))["images"]
    assert images.shape == (3, 16, 16, 3) and len(np.unique(images)) > 5
    with pytest.raises(ValueError, match="its student is a coloured scene, which is no network of a pipeline"):
        export(finished, tmp_path / "exported")
    asked = configure("sample", f"checkpoint={finished / 'generator'}", f"save_to={tmp_path / 'other'}")
    assert refused(asked, sample).startswith("these samples are latents of 4 channels, and no autoencoder decodes them")


def test_a_condition_is_the_words_of_its_camera(pipelines: Pipelines, tmp_path: Path) -> None:
    """Of the teacher and the fake score; the encoder's own output, not that of the prompt alone."""
    parts = build_distillation(recipe(pipelines, tmp_path / "run", "text_to_3d"))
    data = parts.data
    assert isinstance(data, ViewPrompts)
    views = data.embeddings.views
    encoded = TextEncoder(pipelines("sd"))(views.texts, (16, 16))["encoder_hidden_states"]
    assert views.texts == ["a, front view", "a, side view", "a, back view", "a, overhead view"]
    assert len(encoded.flatten(1).unique(dim=0)) == 4
    _, condition = data.__getitems__(range(40))
    assert torch.equal(condition["camera"], views.cameras[:40])
    for row, (azimuth, elevation, _) in enumerate(condition["camera"].tolist()):
        front, back = math.cos(math.radians(azimuth)) > 0.5**0.5, math.cos(math.radians(azimuth)) < -(0.5**0.5)
        assert elevation < 60
        expected = encoded[0 if front else 2 if back else 1]
        torch.testing.assert_close(condition["encoder_hidden_states"][row], expected)
    x, sigma = torch.randn(40, 4, 8, 8), torch.full((40,), 3.0)
    for network in (parts.method.teacher, parts.method.fake_score):
        assert network is not None
        without_camera = {"encoder_hidden_states": condition["encoder_hidden_states"]}
        assert torch.equal(network(x, sigma, condition), network(x, sigma, without_camera))
    assert parts.method.fake_score is not None and parts.method.fake_score.guidance == 1.0


@pytest.mark.parametrize(
    "experiment, of_paper",
    [
        ("text_to_3d", lambda text, none: none + 7.5 * (text - none)),  # ProlificDreamer's code
        ("text_to_3d_dreamfusion", lambda text, none: (1 + 100) * text - 100 * none),  # its eq. 2.2 of eps
        ("text_to_3d_sjc", lambda text, none: none + 100 * (text - none)),  # SJC's code
    ],
)
def test_guidance_as_published(
    experiment: str, of_paper: Callable[[Tensor, Tensor], Tensor], pipelines: Pipelines, tmp_path: Path
) -> None:
    """The recipe's teacher has the eps-prediction of the paper's formula, by its own definition of the scale."""
    built = recipe(pipelines, tmp_path / "run", experiment)
    teacher = instantiate(built.teacher)
    scale = teacher.guidance
    rng = torch.Generator().manual_seed(0)
    x, condition = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 8, 12, generator=rng)
    empty, sigma = torch.randn(1, 8, 12, generator=rng), torch.tensor([0.5, 2.0])

    def eps(guidance: float, embedding: Tensor) -> Tensor:
        teacher.set_guidance(guidance, {"encoder_hidden_states": empty})
        return (x - teacher(x, sigma, {"encoder_hidden_states": embedding})) / sigma[:, None, None, None]

    expected = of_paper(eps(1.0, condition), eps(1.0, empty.expand(2, -1, -1)))
    torch.testing.assert_close(eps(scale, condition), expected, rtol=1e-3, atol=1e-3)


def test_the_gradient_of_score_jacobian_chaining(pipelines: Pipelines, tmp_path: Path) -> None:
    """(x0_teacher - x0) / sigma by the renders, as in SJC's code."""
    config = recipe(pipelines, tmp_path, "text_to_3d_sjc")
    objective = instantiate(config.objective)
    rng = torch.Generator().manual_seed(0)
    x0, x0_teacher, noise = torch.randn(3, 2, 4, 8, 8, generator=rng)
    sigma = torch.tensor([0.3, 5.0])
    x0.requires_grad_()
    x_sigma = (x0 + sigma[:, None, None, None] * noise).detach()
    losses, _ = objective(Predictions(x0, x_sigma, sigma, x0_teacher, None, None, None, None))
    (gradient,) = torch.autograd.grad(losses.sum(), x0)
    torch.testing.assert_close(-gradient, ((x0_teacher - x0) / sigma[:, None, None, None]).detach())


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("discriminator=teacher_features", "generator.gan_weight=0.1"), "real images, and this data has none"),
        (("student.image_shape=[3,8,8]",), "student.image_shape=[3, 8, 8]: expected [4, 8, 8], the shape"),
        (("terms=[opacity]",), "terms.opacity: it is a regulariser of a Scene or SceneGenerator, and the"),
        (("shard=true",), "shard=true: the grid of a scene is not sharded"),
        (("data.elevation=[40,-10]",), "elevation="),
    ],
)  # fmt: skip
def test_what_is_refused(overrides: tuple[str, ...], message: str, pipelines: Pipelines, tmp_path: Path) -> None:
    assert message in refused(recipe(pipelines, tmp_path / "run", "text_to_3d", *overrides))


def test_data_without_cameras(tmp_path: Path) -> None:
    message = refused(tiny_config(tmp_path, "student=coloured_scene", "objective=sds", "student.size=4"))
    assert message.startswith("a coloured scene takes cameras, and the data have the conditions labels: use data=view")

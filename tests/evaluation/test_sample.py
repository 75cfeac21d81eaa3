"""What ``sample.py`` draws from a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from onestep.build.sampling import sample
from onestep.data.digits import Digits
from onestep.images import to_uint8
from onestep.metrics.classifier import load_classifier
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.frechet import FrechetDistance
from onestep.models.generator import Generator
from onestep.models.loading import load_teacher
from onestep.samplers import HeunSampler
from onestep.seeding import seeded_inputs
from tests.helpers.configs import configure

Draw = Callable[..., tuple[Tensor, dict[str, Any]]]


@pytest.fixture
def draw(finished_run: Path, drawn: list[Tensor], tmp_path: Path) -> Draw:
    """Draws from the finished run into ``tmp_path``, emptied: the images and what ``sample`` returns."""

    def run(*overrides: str) -> tuple[Tensor, dict[str, Any]]:
        shutil.rmtree(tmp_path)
        config = configure("sample", f"run={finished_run}", f"save_to={tmp_path}", *overrides)
        result = sample(config)
        return drawn[-1], result

    return run


# The run's two steps of the sampler are so long that they magnify rounding.
@pytest.mark.parametrize("model", [("model=student",), ("model=teacher", "sampler=heun")])
def test_a_seed_is_an_image(model: tuple[str, ...], draw: Draw) -> None:
    model_overrides = (*model, "format=npz")
    many, result = draw(*model_overrides, "count=16")
    assert result["count"] == len(many) == 16
    alone, _ = draw(*model_overrides, "count=1", "seed=7")
    torch.testing.assert_close(alone[0], many[7], rtol=0, atol=1e-5)
    in_threes, _ = draw(*model_overrides, "count=16", "batch_size=3")
    torch.testing.assert_close(in_threes, many, rtol=0, atol=1e-5)
    assert (many[7] - many[8]).abs().max() > 0.1


def test_a_seed_is_an_image_after_several_steps(draw: Draw, few_step_run: Path) -> None:
    of_run = (f"run={few_step_run}", "format=npz")
    many, result = draw(*of_run, "count=64")
    assert result["network_evaluations"] == 3
    alone, _ = draw(*of_run, "count=1", "seed=7")
    torch.testing.assert_close(alone[0], many[7], rtol=0, atol=1e-5)
    in_threes, _ = draw(*of_run, "count=64", "batch_size=3")
    torch.testing.assert_close(in_threes, many, rtol=0, atol=1e-5)
    without_run, _ = draw("run=null", f"checkpoint={few_step_run / 'generator'}", "format=npz", "count=64")
    assert torch.equal(without_run, many)
    one_step = Generator(Generator.from_pretrained(few_step_run / "generator").denoiser, sigma_init=1.0)
    with torch.no_grad():
        first = one_step(*seeded_inputs(list(range(64)), (1, 8, 8), 10))
    assert (first - many).abs().mean() > 0.01


def test_png_files_are_named_by_their_seeds(draw: Draw, tmp_path: Path) -> None:
    images, result = draw("count=3", "seed=5")
    assert result["images"] == str(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000005.png", "000006.png", "000007.png"]
    for seed, image in zip((5, 6, 7), to_uint8(images), strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{seed:06d}.png")), image[0].numpy())


def test_an_array_holds_the_images_and_their_seeds(draw: Draw, tmp_path: Path) -> None:
    images, result = draw("count=5", "seed=100", "format=npz")
    assert result["images"] == str(tmp_path / "samples.npz")
    saved = np.load(tmp_path / "samples.npz")
    assert saved["images"].shape == (5, 8, 8, 1) and saved["images"].dtype == np.uint8
    assert np.array_equal(saved["images"], to_uint8(images).permute(0, 2, 3, 1).numpy())
    assert saved["seeds"].tolist() == [100, 101, 102, 103, 104]


def test_a_grid_is_one_picture(draw: Draw, tmp_path: Path) -> None:
    images, _ = draw("count=12", "format=grid")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (100, 500)  # two rows of ten tiles: 8 pixels, times 6, in a frame of 1
    second_row_second = picture[51:99, 51:99][::6, ::6]
    assert np.array_equal(second_row_second, to_uint8(images)[11, 0].numpy())


@pytest.mark.parametrize("weights, folder", [("ema", "generator"), ("raw", "generator_raw")])
def test_the_weights_that_are_asked_for(weights: str, folder: str, draw: Draw, finished_run: Path) -> None:
    images, _ = draw(f"weights={weights}", "count=8", "format=npz")
    generator = Generator.from_pretrained(finished_run / folder)
    with torch.no_grad():
        expected = generator(*seeded_inputs(list(range(8)), (1, 8, 8), 10))
    assert torch.equal(images, expected)


def test_the_two_weights_differ(draw: Draw) -> None:
    averaged, _ = draw("weights=ema", "count=8", "format=npz")
    raw, _ = draw("weights=raw", "count=8", "format=npz")
    assert 1e-4 < (averaged - raw).abs().max() < 1


def test_a_generator_without_its_run(draw: Draw, finished_run: Path) -> None:
    with_run, _ = draw("count=4", "format=npz")
    without, _ = draw("count=4", "format=npz", "run=null", f"checkpoint={finished_run / 'generator'}")
    assert torch.equal(with_run, without)


def test_the_teacher_is_drawn_by_the_run_s_sampler(draw: Draw) -> None:
    images, result = draw("model=teacher", "count=6", "seed=3", "format=npz")
    assert result["network_evaluations"] == 3  # two steps of Heun
    sampler = HeunSampler(steps=2, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    expected = sampler(load_teacher("digits", guidance=1.0), *seeded_inputs(list(range(3, 9)), (1, 8, 8), 10))
    assert torch.equal(images, expected)
    other, _ = draw("model=teacher", "count=6", "seed=3", "format=npz", "sampler=heun", "sampler.steps=3")
    assert (other - images).abs().max() > 0.1  # a sampler that is given goes before the run's


def test_classes_are_those_that_are_asked_for(draw: Draw, finished_run: Path) -> None:
    images, _ = draw("classes=[3,7]", "count=5", "seed=1", "format=npz")
    latents, _ = seeded_inputs([1, 2, 3, 4, 5], (1, 8, 8), 10)
    condition = {"labels": torch.eye(10)[[7, 3, 7, 3, 7]]}
    with torch.no_grad():
        expected = Generator.from_pretrained(finished_run / "generator")(latents, condition)
    assert torch.equal(images, expected)


def test_classes_are_those_of_the_metrics_images(draw: Draw, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("images")
    for number in range(8):
        (folder / f"{number % 2}").mkdir(exist_ok=True)
        Image.new("L", (8, 8), 30 * number).save(folder / f"{number % 2}" / f"{number}.png")
    given = ("count=4", "format=npz", "metrics=[kid]", "data=image_folder", f"data.path={folder}")
    with pytest.warns(UserWarning, match="only 2 of 10 classes have images"):
        asked, result = draw(*given, "data.num_classes=10", "classes=[0,1]")
        images, of_images = draw(*given, "data.num_classes=10")
    assert torch.equal(images, asked)
    assert of_images["results"][0]["classes"] == result["results"][0]["classes"] == "2 of 10 in turn"
    with pytest.warns(UserWarning, match="images have 2 classes, the network 10: .* set data.num_classes=10"):
        at_random, result = draw(*given)
    assert result["results"][0]["classes"] == "10 at random" and not torch.equal(at_random, asked)


def test_a_generator_draws_the_classes_that_it_was_trained_for(
    draw: Draw, finished_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("generator")
    generator = Generator.from_pretrained(finished_run / "generator")
    generator.classes = [3, 7]
    generator.save_pretrained(folder)
    of_its_own = ("run=null", f"checkpoint={folder}", "count=4", "format=npz")
    assert torch.equal(draw(*of_its_own)[0], draw(*of_its_own, "classes=[3,7]")[0])
    assert not torch.equal(draw(*of_its_own)[0], draw(*of_its_own, "classes=[3,8]")[0])


def test_metrics_are_those_of_the_images(draw: Draw) -> None:
    images, result = draw("count=40", "metrics=[fid]", "format=npz")
    evaluator = Evaluator(load_classifier("digits"), {"fid": FrechetDistance()}, Digits())
    assert result.keys() == {"images", "count", "network_evaluations", "samples_per_second", "fid", "results"}
    assert result["network_evaluations"] == 1
    assert result["fid"] == evaluator([images])["fid"]


def test_the_summary_s_student_is_what_sample_draws(draw: Draw, finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    for model in ("student", "teacher"):
        _, result = draw(f"model={model}", "count=32", "metrics=[fid,recall]", "format=npz", "batch_size=16")
        for key in ("fid", "recall"):
            assert result[key] == pytest.approx(summary[model][key], rel=1e-9)


def test_points_of_a_mixture_are_drawn_and_evaluated(tmp_path: Path) -> None:
    place = tmp_path / "points"
    drawn = ("model=teacher", "teacher=mixture", "mixture=grid", "sampler=heun", "count=200", "format=npz")
    sample(configure("sample", *drawn, f"save_to={place}"))
    points = np.load(place / "samples.npz")["images"]
    assert points.shape == (200, 2, 1, 1)
    nearest = np.abs(points[:, :, 0, 0] * 2 - np.round(points[:, :, 0, 0] * 2)) / 2  # modes at multiples of 0.5
    assert (nearest < 0.15).mean() > 0.98
    scored = ("data=mixture", "mixture=grid", "metrics=[energy]", "data.count=5000")
    assert abs(sample(configure("sample", f"images={place / 'samples.npz'}", *scored))["energy"]) < 0.05

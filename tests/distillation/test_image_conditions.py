"""Trainings on images with a degraded image as their condition: small complete runs, and what is refused."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from onestep.build.distillation import build_distillation, distill
from onestep.build.pretraining import pretrain
from onestep.build.sampling import sample
from onestep.build.upscaling import upscale
from onestep.config import instantiate
from onestep.denoiser import Condition
from onestep.engine.log import read_log
from onestep.evaluation.of_run import RunEvaluator
from onestep.metrics.classifier import Classifier
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator
from tests.helpers.configs import TWO_ITERATIONS, configure, refused, tiny_config, tiny_pretraining
from tests.helpers.updates import take_updates
from tests.helpers.upscaling import encoded, identity, picture

PAIRED = ("data=paired", "data@data.images=digits", "degradation=area", "degradation.factor=2")
OPTIONS = "{model_channels:16,channel_mult:[1,1],num_blocks:1,attn_resolutions:[],label_dropout:0}"
RESIDUAL = (f"network.options={OPTIONS}", "network.image_condition=residual")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a teacher of two iterations."""
    folder = tmp_path_factory.mktemp("teacher")
    pretrain(tiny_pretraining(folder, *PAIRED, *RESIDUAL, *TWO_ITERATIONS, "metrics=[]"))
    return str(folder / "teacher")


def of_teacher(teacher: str) -> tuple[str, ...]:
    return ("teacher=local", f"teacher.path={teacher}", "generator.start=image", "generator.sigma_init=1.0")


EMBEDDING = "features@terms.embedding_js.network=digits"
RUNS: list[Any] = [
    (
        "divergence=forward_kl",
        "discriminator=convolutional",
        "generator.gan_weight=0.1",
        "penalty=r1",
        "terms=[reconstruction,haar,invertible,embedding_js,perceptual]",
        EMBEDDING,
        "features@terms.perceptual.network=digits",
    ),
    *(
        pytest.param(overrides, marks=pytest.mark.slow)
        for overrides in (
            ("divergence=jensen_shannon", "discriminator=teacher_features"),
            ("objective=uni_instruct", "discriminator=strided_shared_encoder", "training.accumulation=2"),
            ("objective=sim", "generator.later_sigmas=[0.5]", "generator.start=image_alone"),
            ("objective=dmd", "pairs.count=6", "pairs.batch_size=4", "divergence=reverse_kl", "pairs.cache={tmp}"),
            (
                "objective=sds",
                "pairs=teacher",
                "pairs.count=6",
                "pairs.batch_size=4",
                "pairs.cache={tmp}",
                "training.accumulation=2",
                "terms=[inverse,consistency,haar]",
            ),
        )
    ),
]


@pytest.mark.parametrize("overrides", RUNS)
def test_a_distillation(overrides: tuple[str, ...], teacher: str, tmp_path: Path) -> None:
    chosen = [one.format(tmp=tmp_path / "pairs") for one in overrides]
    folder = tmp_path / "run"
    more = (*TWO_ITERATIONS, *of_teacher(teacher), "metrics=[]", "diagnosis.samples=4", "diagnosis.held_out=8")
    summary = distill(tiny_config(folder, *PAIRED, *more, *chosen))
    assert summary["images_seen"] == 8 and summary["student"]["network_evaluations"] in (1, 2)
    start = "image_alone" if "generator.start=image_alone" in overrides else "image"
    record = json.loads((folder / "generator" / "generator.json").read_text())
    assert (record["start"], record["upscale_factor"]) == (start, 2)
    logged = {name for line in read_log(folder / "log.jsonl") for name in line}
    terms = {"reconstruction_loss", "haar_loss", "invertible_loss", "embedding_js_loss", "perceptual_loss"}
    assert (terms <= logged) == (EMBEDDING in overrides)
    if EMBEDDING in overrides:  # a network of a term is that of the whole run
        Classifier("other", [1, 8, 8], 10, 64, [32], [2]).save(other := tmp_path / "other.safetensors")
        moved = ("resume=auto", f"terms.embedding_js.network.path={other}")
        assert "settings: terms.embedding_js.network.weights: " in refused(
            tiny_config(folder, *PAIRED, *more, *chosen, *moved)
        )
    (tmp_path / "digit.png").write_bytes(encoded(picture("L", width=5, height=9)))
    paths = (f"images=[{tmp_path / 'digit.png'}]", f"checkpoint={folder}", f"output={tmp_path / 'large.png'}")
    upscale(configure("upscale", *paths, "label=3"))
    with Image.open(tmp_path / "large.png") as image:
        assert (image.mode, image.size) == ("L", (10, 18))


def student(image_condition: str) -> tuple[str, ...]:
    described = "_target_:onestep.models.edm.denoiser.EDMDenoiser,image_shape:[1,8,8],label_dim:10,sigma_data:0.75"
    return (f"generator.network={{{described},image_condition:{image_condition},options:{OPTIONS}}}",)


def test_a_teacher_that_does_not_see_the_image(tmp_path: Path) -> None:
    """It is a prior: the student alone takes the image."""
    more = ("generator.start=image_alone", "divergence=reverse_kl", "discriminator=none", "generator.gan_weight=0")
    config = tiny_config(tmp_path, *PAIRED, *student("input"), *TWO_ITERATIONS, *more, "metrics=[]")
    parts = build_distillation(config)
    assert parts.method.teacher.condition_keys == ("labels",) and parts.student.denoiser.requires_condition
    _, condition = parts.space.inputs([3])
    expected = instantiate(config.data).evaluated.__getitems__([3])[1]
    assert condition.keys() == expected.keys() == {"image", "labels"}
    assert all(torch.equal(condition[name], expected[name]) for name in expected)
    *_, losses = take_updates(parts)
    assert losses["loss"].isfinite().all() and losses["generator_gradient"] > 0


def test_a_plot_has_rows_of_degraded_image_samples_and_original(tmp_path: Path) -> None:
    parts = build_distillation(tiny_config(tmp_path, *PAIRED, *student("input"), *TWO_ITERATIONS, "metrics=[]"))
    data: Any = parts.evaluator.pairs
    evaluator = RunEvaluator(parts.run, parts.evaluator, replace(parts.evaluation, grid=45), parts.space)

    def noise_itself(latents: Tensor, condition: Condition, noises: Iterator[Tensor]) -> Tensor:
        return latents

    noise, images = (evaluator.grid(sample).unflatten(0, (4, 10)) for sample in (noise_itself, identity))
    x, low, _ = data.pairs(range(4))
    seeds = [[row + len(data) * number for number in range(8)] for row in range(4)]
    for found in (noise, images):
        torch.testing.assert_close(found[:, 0], low.repeat_interleave(2, 2).repeat_interleave(2, 3))
        torch.testing.assert_close(found[:, 9], x)
    for row in range(4):
        torch.testing.assert_close(noise[row, 1:9], parts.space.inputs(seeds[row])[0])
        torch.testing.assert_close(images[row, 1:9], data.__getitems__([row] * 8)[1]["image"])


IN_VAIN = [
    ((), "the conditions of the data have images, and the generator.network takes none: set generator.network.image_"),
    (("data=digits", "generator.start=image"), "generator.start=image: the conditions of this data have no images to"),
    ((*student("input"), "augment=edm"), "augment=... transforms the samples and not the images of their conditions"),
    ((*student("input"), "diff_augment=published"), "diff_augment=... transforms the samples and not the images of"),
    ((*student("input"), "generator.labels=uniform"), "generator.labels=uniform draws classes without regard to the"),
    ((*student("input"), "terms=[haar]", "terms.haar.levels=4"), "terms.haar.levels=4: samples of 8x8 cannot be"),
    (
        (*student("input"), "terms=[embedding_js]", "features@terms.embedding_js.network=none"),
        "terms.embedding_js.network: got no network, expected one whose features are differentiable by the image: ch",
    ),
    (
        (*student("input"), "terms=[inverse]"),
        "terms=[inverse] read pairs of noise and teacher image: use pairs=teacher, or leave them out",
    ),
    (
        (*student("input"), "terms=[consistency]", "generator.start=image_alone"),
        "terms.consistency: generator.start=image_alone: noise has no effect on this generator",
    ),
    (
        (
            *student("input"),
            "terms=[consistency]",
            "terms@terms.consistency.distances=[haar]",
            "terms.consistency.distances.haar.levels=4",
        ),
        "terms.haar.levels=4: samples of 8x8 cannot be",
    ),
    (("data=digits", "terms=[consistency]"), "terms=[consistency] compare a sample with the ground truth of its"),
    (
        (*student("input"), "terms=[perceptual]", "features@terms.perceptual.network=none"),
        "terms.lpips.network or terms.perceptual.network: got no network: choose lpips_vgg, lpips_alex, digits,",
    ),
    (("data=digits", "terms=[reconstruction]"), "terms=[reconstruction] compare a sample with the ground truth of its"),
    ((*student("input"), "objective=dmd"), "pairs of noise and teacher image need a teacher that takes the images of"),
    (
        ("data=none", *student("input")),
        "data=none has no conditions but classes, and the generator.network takes image",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), IN_VAIN)
def test_what_does_not_fit(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    plain = ("objective=sid",) if "objective=dmd" not in overrides else ()
    paired = () if {"data=none", "data=digits"} & {*overrides} else PAIRED
    said = refused(tiny_config(tmp_path / "run", *paired, *plain, *overrides, "metrics=[]"), build_distillation)
    assert said.startswith(message) and "\n" not in said


def test_the_start_of_an_initial_generator(tmp_path: Path) -> None:
    settings: Any = {
        "image_condition": "input",
        "options": {"model_channels": 16, "channel_mult": [1], "num_blocks": 1},
    }
    Generator(EDMDenoiser((1, 8, 8), 10, **settings), 2.5, start="image").save_pretrained(tmp_path / "generator")
    init = (f"generator.init={tmp_path / 'generator'}", "generator.sigma_init=2.5", "objective=sid", "metrics=[]")
    said = refused(tiny_config(tmp_path / "run", *PAIRED, *init), build_distillation)
    assert said.endswith("generator.sigma_init=2.5: it holds a generator for start=image, not noise")
    parts = build_distillation(tiny_config(tmp_path / "run", *PAIRED, *init, "generator.start=image"))
    assert parts.student.start == "image" and parts.student.upscale_factor == 2


def test_a_pretraining_that_does_not_fit(tmp_path: Path) -> None:
    said = refused(tiny_pretraining(tmp_path / "a", *PAIRED), pretrain)
    assert said == (
        "the conditions of the data have images, and the network takes none: set network.image_condition=input or "
        "residual"
    )
    said = refused(tiny_pretraining(tmp_path / "b", *RESIDUAL), pretrain)
    assert said.startswith("this network takes a condition of labels, image, got labels: use data and a network with")


@pytest.mark.slow
def test_a_copy_of_a_prior_that_starts_at_the_image(tmp_path: Path) -> None:
    """It is evaluated, sampled and upscales as a student that takes the image as its input."""
    folder = tmp_path / "run"
    plain = ("objective=sim", "terms=[reconstruction]", "generator.start=image_alone", "metrics=[psnr_rgb]")
    summary = distill(tiny_config(folder, *PAIRED, *TWO_ITERATIONS, *plain))
    assert summary["student"]["network_evaluations"] == 1 and summary["student"]["psnr_rgb"] > 3
    drawn = sample(configure("sample", f"run={folder}", "count=4", f"save_to={tmp_path / 'png'}", "metrics=[psnr_rgb]"))
    assert drawn["psnr_rgb"] == pytest.approx(summary["student"]["psnr_rgb"], rel=0.2)
    (tmp_path / "digit.png").write_bytes(encoded(picture("L", width=5, height=9)))
    upscale(
        configure(
            "upscale", f"images=[{tmp_path / 'digit.png'}]", f"checkpoint={folder}", f"output={tmp_path / 'large.png'}",
            "label=3",
        )
    )  # fmt: skip
    with Image.open(tmp_path / "large.png") as image:
        assert image.size == (10, 18)

"""Incompatible parts are rejected with the setting's value and a remedy."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from onestep.build.checks import check_fit
from onestep.build.distillation import build_distillation, distill
from onestep.data.dataset import ImageDataset, ImagesInMemory
from onestep.data.latents import LatentDataset
from onestep.models.edm.denoiser import EDMDenoiser
from tests.helpers.configs import refused, tiny_config


def test_a_ratio_without_a_discriminator(tmp_path: Path) -> None:
    message = refused(tiny_config(tmp_path, "discriminator=none", "divergence=forward_kl", "generator.gan_weight=0"))
    assert message.startswith(
        "this divergence needs the density ratio, but discriminator.head is null: use discriminator=teach"
    )
    assert "divergence=reverse_kl with generator.gan_weight=0" in message


def test_an_adversarial_term_without_a_discriminator(tmp_path: Path) -> None:
    message = refused(tiny_config(tmp_path, "discriminator=none", "divergence=reverse_kl", "generator.gan_weight=0.5"))
    assert message.startswith(
        "generator.gan_weight=0.5 needs a discriminator, but discriminator.head is null: use discriminator="
    )


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "generator.gan_weight=0",
            "generator.gan_weight=0.0: the adversarial term is the whole loss of this objective",
        ),
        ("generator.gan_starts_at=8", "generator.gan_starts_at=8: the adversarial term is the whole loss of this"),
        (
            "generator.gan_weighting=distance",
            "generator.gan_weighting=distance: it weights by the teacher's prediction",
        ),
        (
            "discriminator=none",
            "generator.gan_weight=1.0 needs a discriminator, but discriminator.head is null: use "
            "discriminator=teacher_features or discriminator=convolutional",
        ),
        ("data=none", "the discriminator needs real images, and this data has none: use data=... with images"),
    ],
)
def test_a_gan_alone_without_its_term(override: str, message: str, tmp_path: Path) -> None:
    said = refused(tiny_config(tmp_path / "run", "objective=adversarial", "metrics=[]", override))
    assert said.startswith(message) and "\n" not in said


@pytest.mark.parametrize(
    "overrides, message",
    [
        ((), "objective=terms_alone has no losses of its own, and there are no others: add terms=[...], or pairs="),
        (
            ("discriminator=convolutional", "generator.gan_weight=0.5", "generator.gan_weighting=distance"),
            "generator.gan_weighting=distance: it weights by the teacher's prediction, and this objective has no",
        ),
        (
            ("divergence=forward_kl", "terms=[haar]"),
            "TermsAlone has no divergence, got divergence=ForwardKL: remove divergence=",
        ),
    ],
)
def test_terms_alone_without_what_they_need(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    said = refused(tiny_config(tmp_path / "run", "objective=terms_alone", "metrics=[]", *overrides))
    assert said.startswith(message)


def test_a_regression_without_pairs(tmp_path: Path) -> None:
    message = refused(tiny_config(tmp_path, "generator.regression_weight=0.25"))
    assert message.startswith(
        "generator.regression_weight=0.25 needs pairs of noise and teacher image: use pairs=teacher, or "
        "set generator.regression_weight=0"
    )


def test_pairs_without_a_regression(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    overrides = ("objective=dmd", f"pairs.cache={pairs}")
    message = refused(tiny_config(tmp_path / "run", *overrides, "generator.regression_weight=0"))
    assert message == (
        "pairs of noise and teacher image are not used with generator.regression_weight=0: set a positive weight, "
        "add a term that reads them, or set pairs=none"
    )
    assert not pairs.exists()


@pytest.mark.parametrize(
    "override, expected",
    [
        ("divergence=forward_kl", "this divergence needs the density ratio, but discriminator.head is null"),
        ("sampler.steps=1", "sampler: steps=1: expected an integer of at least 2"),
        ("evaluation.samples=0", "evaluation: samples=0: expected an integer of at least 1"),
        ("features.path=no/such/features", "no feature network at"),
        ("pairs.count=0", "pairs: count=0: expected an integer of at least 1"),
    ],
)
def test_no_pairs_are_generated_before_the_checks(override: str, expected: str, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    with pytest.raises(ValueError, match=expected):
        distill(tiny_config(tmp_path / "run", "objective=dmd", f"pairs.cache={pairs}", override))
    assert not pairs.exists()


def test_optimisers_of_two_kinds(tmp_path: Path) -> None:
    """Fake score and discriminator have separate optimisers, with the class and learning rate of their settings."""
    overrides = ("optimizer.discriminator._target_=torch.optim.AdamW", "optimizer.discriminator.lr=0.125")
    critics = build_distillation(tiny_config(tmp_path, *overrides)).optimizers["critics"].optimizers
    assert {name: type(optimizer).__name__ for name, optimizer in critics.items()} == {
        "fake_score": "Adam", "discriminator": "AdamW",
    }  # fmt: skip
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in critics.items()}
    assert rates["discriminator"] == 0.125 != rates["fake_score"]


def test_a_missing_teacher(tmp_path: Path) -> None:
    message = refused(tiny_config(tmp_path, "teacher=local", "teacher.path=no/such/teacher"))
    assert message.startswith("no teacher at 'no/such/teacher': expected a folder with config.json and safetensors")
    assert "bundled teacher: digits" in message


@pytest.mark.parametrize(
    "image_shape, label_dim, expected",
    [
        ((3, 8, 8), 10, "channels 3 against 1"),
        ((1, 16, 16), 10, "resolution (16, 16) against (8, 8)"),
        ((1, 8, 8), 7, "classes 7 against 10"),
        ((1, 8, 8), 0, "classes 0 against 10"),
    ],
)
def test_a_teacher_of_other_images(
    image_shape: tuple[int, int, int], label_dim: int, expected: str, tmp_path: Path
) -> None:
    options = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": []}
    EDMDenoiser(image_shape, label_dim, options=options).save_pretrained(tmp_path / "teacher")
    message = refused(tiny_config(tmp_path, "teacher=local", f"teacher.path={tmp_path / 'teacher'}"))
    assert message.startswith(f"the teacher does not fit the data: {expected}; use another teacher (teacher=...)")


@pytest.mark.parametrize(
    "kind, label_dim, remedy",
    [(ImagesInMemory, 7, "data.num_classes=10"), (LatentDataset, 7, "data.images.num_classes=10"),
     (ImagesInMemory, 0, r"data\.num_classes=10 with data\.classes=\[N\] for the class N of all images")],
)  # fmt: skip
def test_images_of_fewer_classes_than_the_teachers(kind: type[ImageDataset], label_dim: int, remedy: str) -> None:
    data = kind.__new__(kind)
    data.image_shape, data.label_dim = (4, 8, 8), label_dim
    with pytest.raises(ValueError, match=f"classes 10 against {label_dim}; .*, or {remedy}$"):
        check_fit(SimpleNamespace(image_shape=(4, 8, 8), label_dim=10), data)


def test_a_noise_level_that_the_teacher_does_not_know(tmp_path: Path) -> None:
    message = refused(tiny_config(tmp_path, "generator.sigma_init=100"))
    assert message == "sigma_init=100.0 is outside the noise levels of the network, [0.002, 80.0]"


@pytest.mark.parametrize(
    "later_sigmas, expected",
    [
        ("[0.5,1.5]", "later_sigmas=[0.5, 1.5]: 1.5 must be below 0.5, the level before it"),
        ("[0.5,0.001]", "later_sigmas=[0.5, 0.001]: 0.001 must be below 0.5"),
        ("0.5", "generator.later_sigmas=0.5: expected a list, each a number above 0"),
        (
            "[.9,.8,.7,.6,.5,.4,.3,.2]",
            "later_sigmas=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2] makes 9 steps: expected at most 8",
        ),
    ],
)
def test_steps_that_a_generator_cannot_take(later_sigmas: str, expected: str, tmp_path: Path) -> None:
    assert refused(tiny_config(tmp_path, f"generator.later_sigmas={later_sigmas}")).startswith(expected)


def test_a_batch_that_the_processes_do_not_divide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    message = refused(tiny_config(tmp_path), build_distillation)
    assert message == (
        "training.batch_size=16 cannot be divided among 3 processes: choose a multiple, such as 18"
    )  # fmt: skip

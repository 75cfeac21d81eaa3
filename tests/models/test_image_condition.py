"""Networks and generators that take an image as their condition."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator, Start, load_denoiser
from onestep.models.sample_networks import NOISED_SAMPLES, ConvolutionalNetwork
from onestep.samplers import EulerSampler, HeunSampler, Sampler
from onestep.toy.networks import PointNetwork
from tests.helpers.edm_models import randomized

SMALL = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": []}
#: Architectures with the options of a small network and the sides of its images.
ARCHITECTURES: list[tuple[str, dict[str, Any], int]] = [
    ("SongUNet", SMALL, 8),
    ("SongUNet", SMALL | {"encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}, 8),
    ("DhariwalUNet", SMALL, 8),
    ("EDM2UNet", SMALL, 8),
    ("MLP", {"width": 16}, 1),
    ("Affine", {}, 1),
]


def network(architecture: Any = "SongUNet", options: Any = None, side: int = 8, **settings: Any) -> EDMDenoiser:
    options = SMALL if options is None else options
    return randomized(EDMDenoiser((1, side, side), architecture=architecture, options=options, **settings)).double()


def inputs(side: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """x_sigma, sigma and y."""
    rng = torch.Generator().manual_seed(3)
    x, y = torch.randn(2, 4, 1, side, side, generator=rng, dtype=torch.float64)
    return x, torch.tensor([0.1, 0.5, 2.0, 9.0], dtype=torch.float64), y


@pytest.mark.parametrize(("architecture", "options", "side"), ARCHITECTURES)
def test_a_residual_network_is_the_network_of_the_residual(
    architecture: str, options: dict[str, Any], side: int, tmp_path: Path
) -> None:
    """``D(x_sigma, sigma, y) = y + D_edm(x_sigma - y, sigma; y)``, and both depend on y."""
    x, sigma, y = inputs(side)
    of_input = network(architecture, options, side, image_condition="input", sigma_data=0.3)
    residual = network(architecture, options, side, image_condition="residual", sigma_data=0.3)
    residual.load_state_dict(of_input.state_dict())  # with EDM2's random frequencies
    with torch.no_grad():
        expected = y + of_input(x - y, sigma, {"image": y})
        torch.testing.assert_close(residual(x, sigma, {"image": y}), expected, rtol=0, atol=1e-12)
        assert (of_input(x, sigma, {"image": y}) - of_input(x, sigma, {"image": y + 0.5})).abs().max() > 1e-3
    assert of_input.condition_keys == ("image",)
    residual.float().save_pretrained(tmp_path)
    restored = load_denoiser(tmp_path)
    assert restored.config == residual.config and restored.config["image_condition"] == "residual"


def test_features_see_the_image() -> None:
    x, sigma, y = inputs()
    host = network(image_condition="residual")
    with torch.no_grad():
        _, *features = host(x, sigma, {"image": y}, outputs="both", levels=(0, 1))
        (alone,) = host(x, sigma, {"image": y}, outputs="features", levels=(1,))
        (other,) = host(x, sigma, {"image": -y}, outputs="features", levels=(1,))
    assert torch.equal(alone, features[1]) and (other - alone).abs().max() > 1e-3
    assert [one.shape[1:] for one in features] == [torch.Size(shape) for shape in host.feature_shapes]


def test_configurations_without_image_stay_as_they_were() -> None:
    """They are a part of the keys of caches."""
    assert "image_condition" not in network().config


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({}, "this network takes a condition of labels, image, got none"),
        ({"image": torch.zeros(4, 1, 8, 8)}, "this network takes a condition of labels, image, got image"),
        ({"labels": torch.zeros(4, 3)}, "this network takes a condition of labels, image, got labels"),
        (
            {"labels": torch.zeros(4, 3), "image": torch.zeros(4, 1, 4, 4)},
            r"the image of the condition is \(4, 1, 4, 4\) and the sample \(4, 1, 8, 8\): resize it",
        ),
    ],
)
def test_other_conditions_are_refused(condition: dict[str, Tensor], message: str) -> None:
    x, sigma, _ = (one.float() for one in inputs())
    with pytest.raises(ValueError, match=message):
        network(label_dim=3, image_condition="input").float()(x, sigma, condition)


def test_no_guidance_by_images() -> None:
    with pytest.raises(ValueError, match="guidance=2.0: this network .* takes an image as its condition"):
        network(label_dim=3, image_condition="input").set_guidance(2.0)
    with pytest.raises(ValueError, match="label_dropout=0.1 with image_condition=input: .* set label_dropout=0"):
        network(options=SMALL | {"label_dropout": 0.1}, label_dim=3, image_condition="input")


def test_a_prior_ignores_the_images_of_the_data_where_it_is_told_to() -> None:
    x, sigma, y = inputs()
    prior = network()
    with pytest.raises(ValueError, match="takes a condition of no tensors, got image"):
        prior(x, sigma, {"image": y})
    prior.ignored_keys = ("image",)
    with torch.no_grad():
        assert torch.equal(prior(x, sigma, {"image": y}), prior(x, sigma))


@pytest.mark.parametrize("start", ["noise", "image", "image_alone"])
def test_the_start_of_a_generator(start: Start, tmp_path: Path) -> None:
    z, _, y = (one.float() for one in inputs())
    denoiser = network(image_condition="input").float()
    x_sigma = {"noise": 1.5 * z, "image": y + 1.5 * z, "image_alone": y}[start]
    generator = Generator(denoiser, 1.5, start=start)
    with torch.no_grad():
        expected = denoiser(x_sigma, torch.full((4,), 1.5), {"image": y})
        assert torch.equal(generator(z, {"image": y}), expected)
        generator.save_pretrained(tmp_path)
        restored = Generator.from_pretrained(tmp_path)
        assert torch.equal(restored(z, {"image": y}), expected) and restored.start == start
    if start != "noise":
        with pytest.raises(ValueError, match="takes a condition of image, got none"):
            generator(z)


def test_later_steps_start_at_the_sample() -> None:
    z, _, y = (one.float() for one in inputs())
    denoiser = network(image_condition="input").float()
    with torch.no_grad():
        first = denoiser(y + 1.5 * z, torch.full((4,), 1.5), {"image": y})
        second = denoiser(first + 0.5 * y, torch.full((4,), 0.5), {"image": y})
        generator = Generator(denoiser, 1.5, [0.5], start="image")
        assert torch.equal(generator(z, {"image": y}, iter([y])), second)


def test_a_network_without_image_condition_sees_its_start_alone(tmp_path: Path) -> None:
    z, _, y = (one.float() for one in inputs())
    denoiser, level = network().float(), torch.full((4,), 1.5)
    with torch.no_grad():
        expected = {"image": denoiser(y + 1.5 * z, level), "image_alone": denoiser(y, level)}
        later = denoiser(expected["image"] + 0.5 * y, torch.full((4,), 0.5))
        starts: tuple[Any, ...] = ("image", "image_alone")
        for start in starts:
            generator = Generator(copy.deepcopy(denoiser), 1.5, start=start)
            assert torch.equal(generator(z, {"image": y}), expected[start])
            generator.save_pretrained(tmp_path)
            assert torch.equal(Generator.from_pretrained(tmp_path)(z, {"image": y}), expected[start])
            with pytest.raises(ValueError, match="takes a condition of image, got none"):
                generator(z)
        assert torch.equal(Generator(denoiser, 1.5, [0.5], start="image")(z, {"image": y}, iter([y])), later)


@pytest.mark.parametrize("sampler", [EulerSampler(3), HeunSampler(3, 0.01, 5.0)])
def test_the_sampler_of_a_residual_shift_starts_at_the_image(sampler: Sampler) -> None:
    """It is the sampler of the residual, plus the image."""
    z, _, y = inputs()
    levels: Any = {"sigma_min": 0.01, "sigma_max": 5.0}
    of_input = network(image_condition="input", **levels).float()
    residual = network(image_condition="residual", **levels).float()
    condition = {"image": y.float()}
    expected = y + sampler(of_input, z, condition)
    torch.testing.assert_close(sampler(residual, z, condition), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "side"), [(lambda shapes: ConvolutionalNetwork(shapes, 0, "samples", 16, 8, None, False), 8),
                       (lambda shapes: PointNetwork(shapes, 0, "samples", 16, 1), 1)],
)  # fmt: skip
def test_a_discriminator_of_its_own_sees_the_image(make: Any, side: int) -> None:
    x, sigma, y = (one.float() for one in inputs(side))
    discriminator = randomized(make([(1, side, side)] * 2))

    def logits(image: Tensor) -> Tensor:
        condition = {"image": image}
        logits: Tensor = discriminator(NOISED_SAMPLES(x, sigma, condition), sigma, condition)
        return logits

    with torch.no_grad():
        assert (logits(y) - logits(-y)).abs().min() > 1e-4

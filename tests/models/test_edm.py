"""The EDM networks against the original code's outputs on the same random weights, and the preconditioning's numbers.

The files ``tests/reference/edm_ddpmpp_cond10_16.*`` hold what EDM's own code computed on a CPU in float32, and its
weights, which are random: nothing was trained. The files of the original format are held to theirs in
test_edm_fixtures.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.images import to_uint8
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.samplers import HeunSampler
from tests.helpers.edm_models import tiny_denoiser
from tests.helpers.paths import REFERENCE

TOLERANCE = 1e-5  # of each sample's largest value


class Reference:
    """One network of the original code with its weights in ours, and the arrays that the original computed."""

    def __init__(self, folder: Path, name: str, num_blocks: int) -> None:
        options = {
            "augment_dim": 9,
            "model_channels": 16,
            "channel_mult": [1, 2],
            "num_blocks": num_blocks,
            "attn_resolutions": [8],
            "dropout": 0.13,
        }
        self.weights = load_file(folder / f"{name}.safetensors")
        self.denoiser = EDMDenoiser((3, 16, 16), label_dim=10, options=options).eval()
        self.denoiser.load_state_dict(self.weights)
        with np.load(folder / f"{name}.npz") as arrays:
            self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays}

    def error(self, result: Tensor, name: str) -> float:
        """The largest difference of a sample from its reference, relative to the reference's largest value."""
        expected = self.arrays[name].double().flatten(1)
        difference = (result.double().flatten(1) - expected).abs()
        return float((difference.amax(1) / expected.abs().amax(1)).max())


@pytest.fixture(scope="module")
def edm() -> Reference:
    return Reference(REFERENCE, "edm_ddpmpp_cond10_16", num_blocks=2)


def test_state_dict_fits_exactly(edm: Reference) -> None:
    ours = {key: tuple(value.shape) for key, value in edm.denoiser.state_dict().items()}
    assert ours == {key: tuple(value.shape) for key, value in edm.weights.items()}
    assert any(key.endswith("resample_filter") for key in ours)
    assert sum(p.numel() for p in edm.denoiser.parameters()) == 261_075


@pytest.mark.parametrize(
    "labels, augment_labels, expected",
    [("class_labels", None, "D_x"), ("class_labels", "augment_labels", "D_x_aug"), (None, None, "D_x_nolabel")],
)
@torch.no_grad()
def test_denoiser_equals_the_original(
    edm: Reference, labels: str | None, augment_labels: str | None, expected: str
) -> None:
    arrays = edm.arrays
    result = edm.denoiser(
        arrays["x"],
        arrays["sigma"],
        {name: arrays[key] for name, key in (("labels", labels), ("augment_labels", augment_labels)) if key},
    )
    assert edm.error(result, expected) <= TOLERANCE


def test_sampler_equals_the_original(edm: Reference) -> None:
    sampler = HeunSampler(steps=8, sigma_min=0.002, sigma_max=80)
    assert sampler.sigmas(edm.denoiser) == pytest.approx(edm.arrays["sampler_t_steps"].tolist(), rel=1e-12)
    latents, labels = edm.arrays["latents"].double(), edm.arrays["sampler_class_labels"]
    images = sampler(edm.denoiser, latents, {"labels": labels})
    assert edm.error(images, "sampler_out") <= TOLERANCE
    assert_same_pixels(images, edm.arrays["sampler_uint8"])


def assert_same_pixels(images: Tensor, expected: Tensor) -> None:
    """Equal to the original's uint8 [N, H, W, C], but for the one grey level at a rounding edge."""
    difference = to_uint8(images).permute(0, 2, 3, 1).int() - expected.int()
    assert difference.abs().max() <= 1
    assert (difference != 0).double().mean() < 0.01


class ConstantModel(nn.Module):
    """In place of the raw network: keeps what it was given and returns a constant."""

    def __init__(self, output: float) -> None:
        super().__init__()
        self.output = output
        self.seen: dict[str, Tensor] = {}

    def embed(self, c_noise: Tensor, condition: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        self.seen["c_noise"] = c_noise
        return c_noise

    def encode(self, x: Tensor, embedding: Tensor, stop: int | None = None) -> list[Tensor]:
        self.seen["x"] = x
        return [x]

    def decode(self, encoded: list[Tensor], embedding: Tensor) -> Tensor:
        return torch.full_like(encoded[-1], self.output)


def test_preconditioning_numbers() -> None:
    """Table 1 of arXiv 2206.00364 at sigma_data = 0.5 and sigma = 1.2, where sqrt(sigma^2 + sigma_data^2) = 1.3."""
    denoiser = tiny_denoiser()
    x, sigma = torch.full((1, 1, 8, 8), 2.6), torch.tensor([1.2])
    silent = ConstantModel(0.0)
    denoiser.model = silent
    torch.testing.assert_close(denoiser(x, sigma), torch.full_like(x, (0.5 / 1.3) ** 2 * 2.6))
    torch.testing.assert_close(silent.seen["x"], torch.full_like(x, 2.0))
    torch.testing.assert_close(silent.seen["c_noise"], sigma.log() / 4)
    denoiser.model = ConstantModel(1.0)
    torch.testing.assert_close(denoiser(x, sigma), torch.full_like(x, (0.5 / 1.3) ** 2 * 2.6 + 1.2 * 0.5 / 1.3))


def test_denoising_weight() -> None:
    """It makes the raw network's own error count the same at every sigma: weight * c_out^2 = 1."""
    sigma = torch.tensor([0.002, 0.5, 1.2, 80.0])
    weight = tiny_denoiser().loss_weight(sigma)
    assert weight[2].item() == pytest.approx(1.3**2 / (1.2 * 0.5) ** 2)
    c_out = sigma * 0.5 / (sigma**2 + 0.5**2).sqrt()
    torch.testing.assert_close(weight * c_out**2, torch.ones(4))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Condition]:
    """Noised images that require a gradient, their noise levels and labels."""
    random = torch.Generator().manual_seed(0)
    x_sigma = torch.randn(2, 1, 8, 8, generator=random).requires_grad_()
    return x_sigma, torch.tensor([0.3, 5.0]), {"labels": torch.eye(3)[[2, 0]]}


def test_outputs_agree_with_each_other(batch: tuple[Tensor, Tensor, Condition]) -> None:
    denoiser = tiny_denoiser()
    prediction, features = denoiser(*batch, outputs="both")
    assert torch.equal(prediction, denoiser(*batch))
    (alone,) = denoiser(*batch, outputs="features")
    assert torch.equal(features, alone)
    assert denoiser.feature_shapes[-1] == (32, 4, 4) == features.shape[1:]
    assert prediction.requires_grad and features.requires_grad


def test_prediction_without_graph_beside_features_with(batch: tuple[Tensor, Tensor, Condition]) -> None:
    denoiser = tiny_denoiser()
    prediction, features = denoiser(*batch, outputs="both", prediction_grad=False)
    assert torch.equal(prediction, denoiser(*batch)) and not prediction.requires_grad
    (gradient,) = torch.autograd.grad(features.square().sum(), batch[0])
    (alone,) = denoiser(*batch, outputs="features")
    (expected,) = torch.autograd.grad(alone.square().sum(), batch[0])
    assert torch.equal(gradient, expected) and gradient.abs().max() > 1e-3
    with torch.no_grad():
        _, features = denoiser(*batch, outputs="both", prediction_grad=True)
    assert not features.requires_grad


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"architecture": "DiT"}, "architecture=DiT: expected one of SongUNet, DhariwalUNet, EDM2UNet, MLP, Affine"),
        ({"options": {"img_channels": 1}}, "options.img_channels=1: it follows from the other settings"),
        ({"image_shape": (3, 8, 16)}, r"image_shape=\(3, 8, 16\): expected square"),
        ({"image_shape": (3, 7, 7)}, "img_resolution=7 cannot be halved 2 times"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EDMDenoiser(**({"image_shape": (3, 8, 8)} | arguments))


def test_guidance_extrapolates_from_the_unconditional_prediction() -> None:
    """Eq. 6 of arXiv 2207.12598, with the zero vector as no class; the features stay the conditional ones."""
    denoiser, random = tiny_denoiser(), torch.Generator().manual_seed(0)
    x, sigma = torch.randn(4, 1, 8, 8, generator=random), torch.tensor([0.1, 0.5, 1.0, 4.0])
    labels = {"labels": torch.eye(3)[[0, 1, 2, 0]]}
    conditional, features = denoiser(x, sigma, labels, outputs="both")
    unconditional = denoiser(x, sigma)
    assert denoiser.network_evaluations == 1
    with pytest.raises(ValueError, match=r"guidance=2\.5: .* no unconditional prediction"):
        denoiser.set_guidance(2.5)
    denoiser.guidance = 2.5  # as if it had been trained for it
    assert denoiser.network_evaluations == 2
    guided, guided_features = denoiser(x, sigma, labels, outputs="both")
    torch.testing.assert_close(guided, unconditional + 2.5 * (conditional - unconditional))
    torch.testing.assert_close(denoiser(x, sigma, labels), guided)
    torch.testing.assert_close(guided_features, features)
    torch.testing.assert_close(denoiser(x, sigma), unconditional)
    assert not (guided - conditional).abs().max() < 0.1  # it matters here

"""The generator of one step or a few, and the way of networks to a folder and back."""

import json
import math
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from onestep.denoiser import NO_CONDITION, Condition
from onestep.models.generator import Generator, Renoise, load_denoiser
from onestep.samplers import EulerSampler
from tests.helpers.edm_models import tiny_denoiser

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_generator_is_the_denoiser_at_sigma_init() -> None:
    denoiser = tiny_denoiser()
    latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = {"labels": torch.eye(3)[:2]}
    with torch.no_grad():
        images = Generator(denoiser, sigma_init=2.5)(latents, condition)
        assert torch.equal(images, denoiser(2.5 * latents, torch.tensor([2.5, 2.5]), condition))


@pytest.mark.parametrize("sigma_init", [0.001, 81.0])
def test_sigma_init_outside_the_networks_levels(sigma_init: float) -> None:
    with pytest.raises(ValueError, match=rf"sigma_init={sigma_init} is outside .* \[0.002, 80.0\]"):
        Generator(tiny_denoiser(), sigma_init)


# Several steps.

MEAN, STD = 0.3, 0.5
SIGMAS = [2.5, 1.0, 0.4, 0.15]


class GaussianDenoiser(nn.Module):
    """The exact denoiser of N(MEAN, STD^2), which is linear: ``MEAN + gain(sigma) * (x - MEAN)``."""

    sigma_min, sigma_max = 0.002, 80.0

    def init_noise_sigma(self, sigma: float) -> float:
        return sigma

    def forward(self, x_sigma: Tensor, sigma: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        return MEAN + gain(sigma.reshape(-1, 1, 1, 1)) * (x_sigma - MEAN)


def gain(sigma: Any) -> Any:
    return STD**2 / (STD**2 + sigma**2)


def noise_like_images(steps: int, batch: int = 3) -> list[Tensor]:
    random = torch.Generator().manual_seed(5)
    return [torch.randn(batch, 1, 8, 8, generator=random) for _ in range(steps)]


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("training", [False, True])
def test_steps_of_a_linear_denoiser_have_a_known_law(steps: int, training: bool) -> None:
    """x = MEAN (1 - prod_k gain_k) + sum_k sigma_k z_k prod_(j >= k) gain_j; four standard errors are allowed."""
    sigmas = SIGMAS[:steps]
    generator = Generator(GaussianDenoiser(), sigmas[0], sigmas[1:])  # type: ignore[arg-type]
    noises = noise_like_images(steps, batch=2048)
    images = generator.simulate(noises) if training else generator(noises[0])

    products = [math.prod(gain(later) for later in sigmas[k:]) for k in range(steps)]
    variance = sum((sigma * product) ** 2 for sigma, product in zip(sigmas, products, strict=True))
    count = images.numel()  # independent values, as this denoiser mixes no pixels
    assert images.mean().item() == pytest.approx(MEAN * (1 - products[0]), abs=4 * math.sqrt(variance / count))
    assert images.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / count))


DYADIC = [2.5, 1.0, 0.5, 0.125]  # exact in float32, as a network gets them


class DoubleDenoiser(GaussianDenoiser):
    """The same in float64."""

    def forward(self, x_sigma: Tensor, sigma: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        return super().forward(x_sigma, sigma.double(), condition)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("training", [False, True])
def test_deterministic_steps_are_eulers(steps: int, training: bool) -> None:
    """Euler's step multiplies x_sigma - MEAN by gain + (1 - gain) next / sigma; with 0 as the last level, by gain."""
    sigmas = DYADIC[:steps]
    generator = Generator(DoubleDenoiser(), sigmas[0], sigmas[1:], renoise="deterministic")  # type: ignore[arg-type]
    noises = [noise.double() for noise in noise_like_images(steps)]
    images = generator.simulate(noises) if training else generator(noises[0])
    x = sigmas[0] * noises[0] - MEAN
    for sigma, below in pairwise([*sigmas, 0.0]):
        x = x * (gain(sigma) + (1 - gain(sigma)) * below / sigma)
    torch.testing.assert_close(images, MEAN + x, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_deterministic_generator_equal_to_its_teacher_draws_as_its_sampler() -> None:
    teacher, condition = tiny_denoiser(), {"labels": torch.eye(3)}
    (latents,), sampler = noise_like_images(1), EulerSampler(4)
    first, *later, last = sampler.sigmas(teacher)
    assert last == 0
    images = Generator(teacher, first, later, renoise="deterministic")(latents, condition)
    torch.testing.assert_close(images, sampler(teacher, latents, condition), rtol=0, atol=2e-5)
    fresh = Generator(teacher, first, later)(latents, condition)
    assert (images - fresh).abs().max() > 0.1


def test_deterministic_steps_read_the_latents_alone() -> None:
    generator = Generator(tiny_denoiser(), 2.5, [0.9, 0.3], renoise="deterministic")
    condition = {"labels": torch.eye(3)}
    latents, *others = noise_like_images(3)
    assert (generator.noises, generator.network_evaluations) == (1, 3)
    images = generator(latents, condition, iter(()))
    assert torch.equal(images, generator.simulate([latents, *others], condition))
    assert torch.equal(images, generator.simulate([latents] * 3, condition))


def test_forward_is_the_loop_by_hand() -> None:
    denoiser = tiny_denoiser()
    (latents,), labels = noise_like_images(1), torch.eye(3)
    with torch.no_grad():
        images = Generator(denoiser, 2.5, [0.9, 0.3])(latents, {"labels": labels})
        for i, latent in enumerate(latents):
            own = torch.Generator().manual_seed(zlib.crc32(latent.numpy().tobytes()))
            x = denoiser(2.5 * latent[None], torch.tensor([2.5]), {"labels": labels[i : i + 1]})
            for sigma in (0.9, 0.3):
                x_sigma = x + sigma * torch.randn(1, 1, 8, 8, generator=own)
                x = denoiser(x_sigma, torch.tensor([sigma]), {"labels": labels[i : i + 1]})
            torch.testing.assert_close(images[i], x[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("exit_step", [0, 1, 2])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("renoise", ["stochastic", "deterministic"])
def test_only_the_last_step_is_differentiated(exit_step: int, precision: torch.dtype, renoise: Renoise) -> None:
    denoiser, sigmas, condition = tiny_denoiser(), [2.5, 0.9, 0.3], {"labels": torch.eye(3)}
    noises = noise_like_images(exit_step + 1)

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16)

    def gradient_of(images: Tensor) -> list[Tensor]:
        gradients = torch.autograd.grad(images.square().sum(), list(denoiser.parameters()))
        assert all(gradient.abs().max() > 0 for gradient in gradients)
        return list(gradients)

    def by_hand(detached: bool) -> Tensor:
        x, noise = torch.zeros_like(noises[0]), noises[0]
        for sigma, fresh in zip(sigmas, noises, strict=False):
            noise = fresh if renoise == "stochastic" else noise
            x_sigma = x + sigma * noise
            x_sigma = x_sigma.detach() if detached else x_sigma
            with autocast():
                x = denoiser(x_sigma, torch.full((3,), sigma), condition)
            noise = (x_sigma - x) / sigma
        return x

    with autocast():
        images = Generator(denoiser, sigmas[0], sigmas[1:], renoise=renoise).simulate(noises, condition)
    expected = by_hand(detached=True)
    assert torch.equal(images, expected)
    gradients = gradient_of(images)
    for ours, theirs in zip(gradients, gradient_of(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    through_all = gradient_of(by_hand(detached=False))
    apart = max((ours - theirs).norm() / ours.norm() for ours, theirs in zip(gradients, through_all, strict=True))
    assert apart > 0.05 if exit_step else apart == 0


def test_noise_for_more_steps_than_there_are() -> None:
    with pytest.raises(ValueError, match="noise for 3 steps: this generator has 2"):
        Generator(tiny_denoiser(), 2.5, [0.9]).simulate(noise_like_images(3), {"labels": torch.eye(3)})


@pytest.mark.parametrize(
    "later_sigmas, message",
    [
        ([0.9, 0.9], r"later_sigmas=\[0.9, 0.9\]: 0.9 must be below 0.9, the level before it"),
        ([0.3, 0.9], r"later_sigmas=\[0.3, 0.9\]: 0.9 must be below 0.3, the level before it"),
        ([2.5], r"later_sigmas=\[2.5\]: 2.5 must be below 2.5, the level before it \(the first is sigma_init\)"),
        ([0.9, 0.001], r"0.001 must be below 0.9, .* and at least 0.002, the network's lowest"),
        ([math.nan], r"later_sigmas=\[nan\]: nan must be below 2.5"),
        ([2.0 - 0.1 * k for k in range(8)], r"later_sigmas=\[2.0, .* makes 9 steps: expected at most 8"),
    ],
)
def test_later_sigmas_that_do_not_descend(later_sigmas: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Generator(tiny_denoiser(), 2.5, later_sigmas)


def test_most_steps_and_the_lowest_level_are_allowed() -> None:
    generator = Generator(tiny_denoiser(), 2.5, [2.0, 1.5, 1.0, 0.5, 0.1, 0.01, 0.002])
    assert generator.network_evaluations == 8


# To a folder and back.


def test_the_steps_come_back(tmp_path: Path) -> None:
    Generator(tiny_denoiser(), 2.5, [0.9, 0.3]).save_pretrained(tmp_path)
    restored = Generator.from_pretrained(tmp_path)
    assert (restored.sigma_init, restored.later_sigmas, restored.network_evaluations) == (2.5, [0.9, 0.3], 3)
    assert restored.classes is None and restored.renoise == "stochastic"
    Generator(tiny_denoiser(), 2.5, [0.9], renoise="deterministic").save_pretrained(tmp_path)
    assert Generator.from_pretrained(tmp_path).renoise == "deterministic"


def test_the_classes_come_back(tmp_path: Path) -> None:
    Generator(tiny_denoiser(), 2.5, classes=[0, 2]).save_pretrained(tmp_path)
    assert Generator.from_pretrained(tmp_path).classes == [0, 2]
    (tmp_path / "generator.json").write_text('{"sigma_init": 2.5, "classes": [0, 3]}')
    with pytest.raises(ValueError, match=r"generator\.json: classes=\[0, 3\]: this network has 3 classes"):
        Generator.from_pretrained(tmp_path)


def test_a_generator_that_was_saved_without_later_steps_has_one(folder: Path) -> None:
    (folder / "generator.json").write_text('{"sigma_init": 2.5}')
    assert Generator.from_pretrained(folder).network_evaluations == 1


def test_generator_comes_back_bit_for_bit(tmp_path: Path) -> None:
    generator = Generator(tiny_denoiser(dropout=0.3).train(), sigma_init=3.25)
    generator.save_pretrained(tmp_path)
    restored = Generator.from_pretrained(tmp_path)
    assert restored.sigma_init == 3.25 and not restored.training and not restored.denoiser.training
    saved, config = json.loads((tmp_path / "config.json").read_text()), dict(generator.denoiser.config)
    assert saved["options"] == config["options"] and saved["image_shape"] == [1, 8, 8]
    weights = generator.state_dict()
    assert restored.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in restored.state_dict().items())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved generator."""
    Generator(tiny_denoiser(), sigma_init=2.5).save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder: Path, drop: str = "", **extra: torch.Tensor) -> None:
    weights = {key: value for key, value in load_file(folder / WEIGHTS).items() if key != drop}
    save_file(weights | extra, folder / WEIGHTS, metadata={"format": "pt"})


def test_folder_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no checkpoint at '{tmp_path}/absent': expected a folder with config.json"):
        load_denoiser(tmp_path / "absent")


def test_denoiser_is_no_generator(tmp_path: Path) -> None:
    tiny_denoiser().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds no one-step generator: expected generator.json"):
        Generator.from_pretrained(tmp_path)


def test_missing_tensor(folder: Path) -> None:
    edit_weights(folder, drop="model.map_label.bias")
    with pytest.raises(ValueError, match=r"do not fit config.json: .*model\.map_label\.bias \(missing\)"):
        load_denoiser(folder)


def test_tensor_too_many(folder: Path) -> None:
    edit_weights(folder, stray=torch.zeros(1))
    with pytest.raises(ValueError, match=r"do not fit config.json: .*stray \(\(1,\), expected none"):
        load_denoiser(folder)


def test_config_of_another_width(folder: Path) -> None:
    edit_config(folder, label_dim=4)
    with pytest.raises(ValueError, match=rf"{folder.name}' do not fit config.json.*map_label"):
        load_denoiser(folder)


def test_config_of_another_architecture(folder: Path) -> None:
    edit_config(folder, architecture="DiT")
    with pytest.raises(ValueError, match=f"{folder.name}/config.json: architecture='DiT': expected 'SongUNet'"):
        load_denoiser(folder)


def test_config_with_an_unknown_option(folder: Path) -> None:
    edit_config(folder, options={"width": 16})
    with pytest.raises(ValueError, match=rf"{folder.name}.*no network: unknown key 'options.width'"):
        load_denoiser(folder)


def test_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=rf"{folder.name}/config.json: no JSON"):
        load_denoiser(folder)


def test_cut_weights(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{folder.name}.*no safetensors, or a damaged file"):
        load_denoiser(folder)


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=rf"no weights diffusion_pytorch_model.safetensors in .*{folder.name}"):
        load_denoiser(folder)

"""The one-step generator, and the way of networks to a folder and back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onestep.networks.edm import EDMDenoiser
from onestep.networks.generator import Generator, load_denoiser

Denoisers = Callable[..., EDMDenoiser]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_generator_is_the_denoiser_at_sigma_init(tiny_denoiser: Denoisers) -> None:
    denoiser = tiny_denoiser()
    latents, condition = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.eye(3)[:2]
    with torch.no_grad():
        images = Generator(denoiser, sigma_init=2.5)(latents, condition)
        assert torch.equal(images, denoiser(2.5 * latents, torch.tensor([2.5, 2.5]), condition))


@pytest.mark.parametrize("sigma_init", [0.001, 81.0])
def test_sigma_init_outside_the_networks_levels(tiny_denoiser: Denoisers, sigma_init: float) -> None:
    with pytest.raises(ValueError, match=rf"sigma_init={sigma_init} is outside .* \[0.002, 80.0\]"):
        Generator(tiny_denoiser(), sigma_init)


def test_generator_comes_back_bit_for_bit(tiny_denoiser: Denoisers, tmp_path: Path) -> None:
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
def folder(tiny_denoiser: Denoisers, tmp_path: Path) -> Path:
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


def test_denoiser_is_no_generator(tiny_denoiser: Denoisers, tmp_path: Path) -> None:
    tiny_denoiser().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds no one-step generator: expected generator.json"):
        Generator.from_pretrained(tmp_path)


def test_missing_tensor(folder: Path) -> None:
    edit_weights(folder, drop="model.map_label.bias")
    with pytest.raises(ValueError, match=r"do not fit their config.json.*missing_keys.*model\.map_label\.bias"):
        load_denoiser(folder)


def test_tensor_too_many(folder: Path) -> None:
    edit_weights(folder, stray=torch.zeros(1))
    with pytest.raises(ValueError, match=r"do not fit their config.json.*unexpected_keys.*stray"):
        load_denoiser(folder)


def test_config_of_another_width(folder: Path) -> None:
    edit_config(folder, label_dim=4)
    with pytest.raises(ValueError, match=rf"{folder.name}' do not fit their config.json.*map_label"):
        load_denoiser(folder)


def test_config_of_another_architecture(folder: Path) -> None:
    edit_config(folder, architecture="DiT")
    with pytest.raises(ValueError, match=rf"{folder.name}' do not fit their config.json: unknown architecture 'DiT'"):
        load_denoiser(folder)


def test_config_with_an_unknown_option(folder: Path) -> None:
    edit_config(folder, options={"width": 16})
    with pytest.raises(ValueError, match=rf"{folder.name}.*cannot be read.*unexpected keyword argument 'width'"):
        load_denoiser(folder)


def test_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=rf"{folder.name}.*cannot be read"):
        load_denoiser(folder)


def test_cut_weights(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{folder.name}.*cannot be read"):
        load_denoiser(folder)


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=rf"{folder.name}.*cannot be read"):
        load_denoiser(folder)

"""Conditions: dicts of named tensors that are split, joined, and refused where a network takes others."""

import diffusers
import pytest
import torch
from torch import nn

from onestep.denoiser import NO_CONDITION, Condition, check_condition, concatenate_conditions, micro_batches
from onestep.models.edm.denoiser import EDMDenoiser
from tests.helpers.diffusers_models import build_denoiser
from tests.helpers.edm_models import tiny_denoiser

CAMERA: Condition = {"image": torch.arange(12.0).reshape(4, 3), "camera": torch.arange(4.0)[:, None]}


def test_micro_batches_are_the_rows_in_order() -> None:
    first, second = micro_batches(CAMERA, 2)
    assert first["image"].tolist() == [[0, 1, 2], [3, 4, 5]] and second["camera"].tolist() == [[2], [3]]
    assert all(torch.equal(joined, CAMERA[name]) for name, joined in concatenate_conditions(first, second).items())
    assert [part.tolist() for part in micro_batches(CAMERA["camera"], 4)] == [[[0]], [[1]], [[2]], [[3]]]
    assert micro_batches(NO_CONDITION, 3) == [{}, {}, {}] and micro_batches(None, 2) == [None, None]


@pytest.mark.parametrize(
    "condition, taken, required, message",
    [
        (CAMERA, ("labels",), False, "takes a condition of labels, got image, camera"),
        (CAMERA, (), False, "takes a condition of no tensors, got image, camera"),
        (CAMERA, ("image",), True, "takes a condition of image, got image, camera"),
        ({}, ("image", "camera"), True, "takes a condition of image, camera, got none"),
    ],
)
def test_an_unfit_condition_names_both_sides(
    condition: Condition, taken: tuple[str, ...], required: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_condition(condition, taken, required)


def test_networks_declare_what_they_take() -> None:
    x, sigma = torch.randn(1, 1, 8, 8), torch.ones(1)
    assert tiny_denoiser().condition_keys == ("labels",) and tiny_denoiser(label_dim=0).condition_keys == ()
    for denoiser in (tiny_denoiser(), tiny_denoiser(label_dim=0)):
        with pytest.raises(ValueError, match="got image"):
            denoiser(x, sigma, {"image": x})
    with pytest.raises(ValueError, match="of no tensors, got labels"):
        tiny_denoiser(label_dim=0)(x, sigma, {"labels": torch.eye(3)[:1]})
    keys = {name: build_denoiser(name, diffusers.DDIMScheduler()).condition_keys for name in ("dit", "unet", "sdxl")}
    text = ("encoder_hidden_states", "text_embeds", "time_ids")
    assert keys == {"dit": ("labels",), "unet": (), "sdxl": text}


class ByCamera(EDMDenoiser):
    """A network whose condition is no class."""

    condition_keys = ("camera",)

    def predict(self, x_sigma, sigma, condition, /, *, outputs, levels, prediction_grad):  # type: ignore[no-untyped-def]
        return x_sigma + condition["camera"][:, :, None, None]


def test_guidance_by_any_condition_is_away_from_its_zeros_or_from_what_is_given() -> None:
    network = ByCamera((1, 8, 8), options={"model_channels": 16, "channel_mult": [1], "num_blocks": 1})
    network.guidance = 3.0
    x, condition = torch.zeros(2, 1, 8, 8), {"camera": torch.tensor([[1.0], [2.0]])}
    assert network(x, torch.ones(2), condition)[:, 0, 0, 0].tolist() == [3, 6]  # 0 + 3 (c - 0)
    network.unconditional = {"camera": torch.tensor([[0.5]])}
    assert network(x, torch.ones(2), condition)[:, 0, 0, 0].tolist() == [2, 5]  # 0.5 + 3 (c - 0.5)
    assert isinstance(network, nn.Module)

"""The discriminators of SiDA, DMD2 and f-distill's published code: their logits and losses, recorded.

``tests/reference/published_heads.npz`` has the logits that the original codes computed, with the noised images, the
heads' weights and the encoders of the networks. Those of the DDPM++ teacher are in ``edm_ddpmpp_cond10_16``.
"""

from functools import lru_cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from onestep.models.discriminator import ChannelMean, Discriminator, StridedHeads
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.objectives.adversarial import discriminator_loss, generator_loss
from tests.helpers.paths import REFERENCE

DDPMPP = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 2, "attn_resolutions": [8], "augment_dim": 9}
ADM = {"model_channels": 16, "channel_mult": [1, 4], "channel_mult_emb": 2, "num_blocks": 1, "attn_resolutions": [8],
       "augment_dim": 9}  # fmt: skip
FASTGEN = {"model_channels": 16, "channel_mult": [1, 1], "num_blocks": 4, "attn_resolutions": [8], "augment_dim": 9}


@lru_cache
def recorded(prefix: str) -> dict[str, Tensor]:
    with np.load(REFERENCE / "published_heads.npz") as file:
        return {key.removeprefix(prefix): torch.from_numpy(file[key]) for key in file if key.startswith(prefix)}


def perturbed(network: EDMDenoiser) -> EDMDenoiser:
    """The fake score of the recordings: weights times 1 + sin(1.3 i + 0.5) / 10, i the index within the tensor."""
    for parameter in network.parameters():
        index = torch.arange(parameter.numel(), dtype=torch.float64).view_as(parameter)
        parameter.copy_(parameter.double() * (1 + 0.1 * torch.sin(1.3 * index + 0.5)))
    return network


def build(name: str) -> tuple[EDMDenoiser, Discriminator]:
    """The network that has the features, and the discriminator."""
    if name == "sida":
        fake_score = EDMDenoiser((3, 16, 16), 10, options=DDPMPP)
        fake_score.load_state_dict(load_file(REFERENCE / "edm_ddpmpp_cond10_16.safetensors"))
        return perturbed(fake_score), ChannelMean(fake_score.feature_shapes, 0, "fake_score", 10.0)
    if name == "dmd2":
        network, encoder = EDMDenoiser((3, 16, 16), 20, architecture="DhariwalUNet", options=ADM), "adm/"
        head = StridedHeads(network.feature_shapes, 0, "fake_score", [-1], groups=4)
    else:
        network, encoder = EDMDenoiser((3, 16, 16), 10, options=FASTGEN), "fastgen/"
        head = StridedHeads(network.feature_shapes, 0, "teacher", None, groups=32)
    assert not network.load_state_dict(recorded(encoder), strict=False).unexpected_keys
    head.heads.load_state_dict(recorded(f"{name}/head/"))
    return perturbed(network) if name == "dmd2" else network, head


@torch.no_grad()
@pytest.mark.parametrize("name", ["sida", "dmd2", "kl"])
def test_logits_of_real_and_generated_images(name: str) -> None:
    network, head = build(name)
    record = recorded(f"{name}/")
    logits = {}
    for side in ("real", "fake"):
        condition = {"labels": record.get(f"labels_{side}", record.get("labels", torch.empty(0)))}
        features = network.eval()(
            record[f"x_{side}"], record[f"sigma_{side}"], condition, outputs="features", levels=head.levels
        )
        logits[side] = head(features, record[f"sigma_{side}"], condition)
        expected = record[f"logits_{side}"].view_as(logits[side])
        torch.testing.assert_close(logits[side], expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    losses = discriminator_loss(logits["real"], logits["fake"])
    if name == "sida":  # the mean of both sides, of the batch and of the map, times EDM's weight
        weight = record["sigma_fake"] ** -2 + 4
        torch.testing.assert_close(weight * losses.mean() / 2, record["discriminator_loss_per_sample"])
    else:
        torch.testing.assert_close(losses.mean(), record["discriminator_loss"])


@pytest.mark.parametrize("name", ["sida", "dmd2", "js", "kl"])
def test_the_generators_loss(name: str) -> None:
    record = recorded(f"{name}/")
    loss = generator_loss(
        record["generator_logits"].flatten(1) if name != "dmd2" else record["generator_logits"][:, None]
    )
    if name == "sida":  # per sample of 768 dimensions, divided by the distance to the teacher's prediction
        torch.testing.assert_close(768 * loss.mean() / record["distance"], record["gan_loss_per_sample"])
    else:
        torch.testing.assert_close(loss.mean(), record["generator_loss"])

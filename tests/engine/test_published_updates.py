"""Averages, clipping and optimisers against recorded steps of the public codes.

``tests/reference/published_updates.npz`` has weights of single layers before and after two cycles of SiD, SiDA, DMD2
and FastGen (f-distill, forward KL), with the gradients that their optimisers got.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onestep.build.run import build_clips, build_rules
from onestep.config import instantiate
from onestep.engine.averages import Averages
from onestep.engine.clipping import JointNorm, total_norm
from onestep.engine.optimizer import GuardedOptimizer
from onestep.objectives.losses import Losses, Term
from tests.helpers.configs import configure
from tests.helpers.paths import REFERENCE
from tests.helpers.updates import make_settings

RECORDED = {key: torch.from_numpy(value) for key, value in np.load(REFERENCE / "published_updates.npz").items()}
EPS_OF_FP16 = ("optimizer.generator.eps=1e-6", "optimizer.generator.lr=4e-6")
FASTGEN_CIFAR = ("optimizer=adamw", "optimizer.fake_score.lr=1e-4", "clip.critics=null")


class Layer(nn.Module):
    """A module with one weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())


@pytest.mark.parametrize(
    ("case", "network", "overrides"),
    [
        ("sid", "generator", ("clip.generator=null",)),
        ("sid_imagenet64", "generator", ("clip.generator=null", *EPS_OF_FP16)),
        ("sida", "fake_score", ("clip.critics._target_=onestep.engine.clipping.Entries", "clip.critics.largest=1")),
        ("dmd2", "fake_score", ("optimizer=adamw", "clip.critics._target_=onestep.engine.clipping.JointNorm")),
        ("fastgen", "fake_score", FASTGEN_CIFAR),
    ],
)
def test_steps_from_the_recorded_gradients(case: str, network: str, overrides: tuple[str, ...]) -> None:
    """Every step of two cycles to the rounding of the weight."""
    config = configure("train", "teacher=digits", *overrides)
    layer = Layer(RECORDED[f"{case}/start"])
    make_optimizer = instantiate(config.optimizer[network])
    clip = build_clips(config)["generator" if network == "generator" else "critics"]
    guard = GuardedOptimizer({network: make_optimizer(layer.parameters())}, make_settings(), clip)
    for gradient, expected in zip(RECORDED[f"{case}/gradients"], RECORDED[f"{case}/weights"], strict=True):
        guard.backward(Losses({"loss": Term((layer.weight * gradient).sum()[None])}), torch.ones(1))
        guard.step(iteration=0)
        torch.testing.assert_close(layer.weight.detach(), expected, rtol=2.4e-7, atol=0)
        assert (expected - RECORDED[f"{case}/start"]).abs().max() > 1e-6


def relative_error(found: Tensor, expected: Tensor, before: Tensor) -> float:
    return float((found - expected).norm() / (expected - before).norm())


@pytest.mark.parametrize(("case", "start"), [("sid", 20_000), ("sida_frozen", 20_000), ("sida", 300_000)])
def test_the_half_life_of_sid(case: str, start: int) -> None:
    """Two cycles of 8 images; the average moves on while SiDA's generator stands still."""
    averages = Averages(Layer(RECORDED[f"ema/{case}/teacher"]), build_rules(configure("train", "teacher=digits")))
    for cycle, expected in enumerate(RECORDED[f"ema/{case}/ema"]):
        average = averages.networks["ema"].weight
        before = average.clone()
        generator = Layer(RECORDED[f"ema/{case}/generator"][cycle + 1])
        averages.after_iteration(generator, images_seen=start + 8 * cycle, batch_size=8)
        rounding = 3e-8 * expected.norm() / (expected - before).norm()  # of float32, which the movement is near to
        assert relative_error(average, expected, before) < 1e-5 + rounding


def test_the_three_averages_of_fastgen() -> None:
    """Four updates of the critics and one of the generator in each cycle, to the last bit."""
    config: Any = configure("train", "teacher=digits", "averages=fastgen")
    averages = Averages(Layer(RECORDED["ema/fastgen/teacher"]), build_rules(config))
    generators = RECORDED["ema/fastgen/generator"]
    for cycle, (before, after) in enumerate(pairwise(generators)):
        for weight in (before, before, before, before, after):
            averages.after_update(Layer(weight))
        for name, average in averages.networks.items():
            assert torch.equal(average.weight, RECORDED[f"ema/fastgen/{name}"][cycle])


def test_the_joint_norm_of_dmd2() -> None:
    """The norms of all parameters of fake score and discriminator make the recorded one, below the bound of 10."""
    parameters = {}
    for name in ("fake_score", "discriminator"):
        norms = RECORDED[f"joint/{name}"].float()
        parameters[name] = [nn.Parameter(torch.zeros(())) for _ in norms]
        for parameter, norm in zip(parameters[name], norms, strict=True):
            parameter.grad = norm.clone()
    totals = {name: total_norm(group) for name, group in parameters.items()}
    joint = RECORDED["joint/norm"].item()
    JointNorm(10.0)(parameters, totals)
    assert {name: total_norm(group) for name, group in parameters.items()} == totals
    JointNorm(joint / 2)(parameters, totals)
    for name, group in parameters.items():
        assert total_norm(group).item() == pytest.approx(totals[name].item() / 2, rel=1e-6)

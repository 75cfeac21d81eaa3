"""Rules of classifier-free guidance, against closed forms of Gaussians and diffusers' own function."""

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from onestep.build.distillation import build_distillation
from onestep.denoiser import Condition
from onestep.models.base import DenoiserNetwork
from onestep.models.guidance import PLAIN, GuidanceRule
from onestep.models.loading import load_teacher
from tests.helpers.configs import tiny_config
from tests.helpers.diffusers_models import build_denoiser

MEAN, STD = 2.0, 0.5  # of the class; the mean of the data without their class is 0
X = torch.linspace(-3, 3, 4 * 12, dtype=torch.float64).reshape(4, 3, 2, 2) ** 3 / 3
SIGMA = torch.tensor([0.1, 0.5, 1.0, 4.0], dtype=torch.float64)


class Gaussians(DenoiserNetwork):
    """The exact denoiser of N(mean, STD^2) with the mean MEAN of the class, and of N(0, STD^2) without a class."""

    image_shape, sigma_min, sigma_max, label_dim = (3, 2, 2), 0.002, 80.0, 1
    supports_guidance = True

    def denoise(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return posterior_mean(x_sigma, sigma, MEAN * condition["labels"][:, :, None, None])


def posterior_mean(x_sigma: Tensor, sigma: Tensor, mean: Tensor | float) -> Tensor:
    of_data = (STD**2 / (STD**2 + sigma**2))[:, None, None, None]
    return mean + of_data * (x_sigma - mean)


def guided(guidance: float, rule: GuidanceRule = PLAIN) -> Tensor:
    network = Gaussians().set_guidance(guidance, rule=rule)
    return network(X, SIGMA, {"labels": torch.ones(4, 1, dtype=torch.float64)})


@pytest.mark.parametrize("guidance", [-1.5, 0.0, 0.5, 3.0])
def test_guidance_of_either_sign_moves_the_mean_of_a_gaussian(guidance: float) -> None:
    """Both Gaussians have one variance, so that the guided score is that of the mean ``guidance * MEAN``."""
    torch.testing.assert_close(guided(guidance), posterior_mean(X, SIGMA, guidance * MEAN))


def test_guidance_in_an_interval_of_levels() -> None:
    """The lower level is not in it, the higher one is."""
    found = guided(3.0, GuidanceRule(rescale=0.0, interval=(0.1, 1.0)))
    inside = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)[:, None, None, None]
    torch.testing.assert_close(found, posterior_mean(X, SIGMA, inside * MEAN))


@pytest.mark.parametrize("rescale", [0.3, 0.7, 1.0])
def test_the_rescaled_norm_is_that_of_diffusers(rescale: float) -> None:
    random = torch.Generator().manual_seed(0)
    conditional, unconditional = torch.randn(2, 5, 4, 3, 3, generator=random)
    found = GuidanceRule(rescale=rescale, interval=None)(conditional, unconditional, torch.ones(5), 7.5)
    plain = PLAIN(conditional, unconditional, torch.ones(5), 7.5)
    torch.testing.assert_close(found, rescale_noise_cfg(plain, conditional, guidance_rescale=rescale))
    assert plain.std() > 5 * conditional.std()  # it matters here
    if rescale == 1:
        torch.testing.assert_close(found.flatten(1).std(1), conditional.flatten(1).std(1))


def test_a_constant_prediction_is_not_divided_by_zero() -> None:
    ones = torch.ones(1, 3, 2, 2)
    assert GuidanceRule(rescale=0.5, interval=None)(ones, ones, torch.ones(1), 2.0).isfinite().all()


def test_the_rules_of_teacher_and_fake_score(tmp_path: Path) -> None:
    """The settings reach both networks, and no copy of the teacher that is not guided."""
    rules = ("teacher.guidance_rescale=0.7", "fake_score.guidance=-1", "fake_score.guidance_interval=[0.3,5]")
    parts = build_distillation(tiny_config(tmp_path, "objective=sid_lsg", *rules))
    assert parts.method.teacher.guidance_rule == GuidanceRule(rescale=0.7, interval=None)
    fake_score: Any = parts.method.fake_score
    assert fake_score.guidance_rule == GuidanceRule(rescale=0.0, interval=(0.3, 5.0)) and fake_score.guidance == -1
    assert parts.student.denoiser.guidance_rule == PLAIN


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("teacher.guidance_rescale=0.7",), "guidance=1.0, guidance_rescale=0.7, .*: there is no guidance, so"),
        (("fake_score.guidance_interval=[1,2]",), r"guidance_interval=\(1.0, 2.0\): there is no guidance, so"),
        (("teacher.guidance=2", "teacher.guidance_interval=[2,1]"), r"guidance_interval=\[2.0, 1.0\]: expected two"),
        (("teacher.guidance_rescale=2",), "guidance_rescale=2: expected a number of at least 0 and at most 1"),
        (("teacher.guidance=-1",), "guidance=-1: expected a number of at least 0"),
    ],
)
def test_rules_that_cannot_be(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build_distillation(tiny_config(tmp_path, *overrides))


def test_no_rule_where_guidance_is_an_input() -> None:
    rule = GuidanceRule(rescale=0.5, interval=None)
    with pytest.raises(ValueError, match=re.escape("guidance is an input of the network, so")):
        build_denoiser("flux dev", diffusers.FlowMatchEulerDiscreteScheduler()).set_guidance(3.5, rule=rule)


def test_a_teacher_from_python() -> None:
    teacher = load_teacher("digits", guidance=2.0, guidance_rescale=0.5, guidance_interval=(0.1, 2.0))
    assert teacher.guidance_rule == GuidanceRule(rescale=0.5, interval=(0.1, 2.0))

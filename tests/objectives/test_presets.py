"""Every preset of conf/objective/ against its closed form, by quadrature on a grid, for random mixtures."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from onestep.config import CONF, instantiate
from onestep.objectives.adversarial import generator_loss
from onestep.objectives.base import Objective
from onestep.objectives.divergences import Divergence
from tests.helpers.configs import configure

CONF_OBJECTIVE = CONF / "objective"
MATCHING = ["diff_instruct", "vsd", "dmd2", "f_distill"]  # gradients of D_f(p||q)
EXPANSIONS = ["sim", "uni_instruct"]  # gradients of E_q[h |score_p - score_q|^2]
SID = ["sid", "sida", "sid_lsg", "uni_instruct_code"]  # the last is SiD without an adversarial term
SDS = ["sds"]
ADVERSARIAL = ["adversarial"]  # a GAN alone
TDM = ["tdm"]  # reverse KL by another metric


def random_law(random: torch.Generator) -> dict[str, list[float]]:
    weight = torch.rand(2, generator=random) + 0.3
    mean = torch.randn(2, generator=random)
    std = 0.4 + 0.8 * torch.rand(2, generator=random)
    return {"weight": (weight / weight.sum()).tolist(), "mean": mean.tolist(), "std": std.tolist()}


@pytest.fixture(params=range(3))
def world(request: pytest.FixtureRequest, make_world: Callable[..., Any]) -> Any:
    """A teacher and a generator of two components each, at a random noise level."""
    random = torch.Generator().manual_seed(100 + request.param)
    case = {"teacher": random_law(random), "generator": random_law(random)}
    return make_world(case, {"sigma": 0.3 + float(torch.rand((), generator=random)), "divergence": "reverse_kl"})


class NoisedMixture:
    """A noised mixture on a fine grid, written out here; differentiable by its means and standard deviations."""

    grid = torch.linspace(-25, 25, 40001, dtype=torch.float64)

    def __init__(self, mixture: dict[str, Any], sigma: float, mean: Tensor, std: Tensor) -> None:
        weight = torch.tensor(mixture["weight"], dtype=torch.float64)[:, None]
        variance = std.square()[:, None] + sigma**2
        offset = self.grid - mean[:, None]
        joint = weight.log() - 0.5 * (offset.square() / variance + variance.log() + math.log(2 * math.pi))
        self.log = joint.logsumexp(0)
        self.score = (joint.softmax(0) * -offset / variance).sum(0)

    @classmethod
    def fixed(cls, mixture: dict[str, Any], sigma: float) -> "NoisedMixture":
        return cls(mixture, sigma, *(torch.tensor(mixture[key], dtype=torch.float64) for key in ("mean", "std")))

    @classmethod
    def integral(cls, values: Tensor) -> Tensor:
        return values.sum() * (cls.grid[1] - cls.grid[0])


def preset(name: str, *overrides: str) -> Objective:
    """The preset's objective with weight 1 at every noise level, for which the minimised quantity has a closed form."""
    config = configure("train", f"objective={name}", "weighting=unit", *overrides)
    if "normalize_weight" in config.objective:
        config.objective.normalize_weight = False
    objective: Objective = instantiate(config.objective)
    return objective


def expected_gradient(world: Any, descended: Callable[[NoisedMixture, NoisedMixture], Tensor]) -> Tensor:
    mean, std = (world.mean.detach().requires_grad_(), world.std.detach().requires_grad_())
    p = NoisedMixture.fixed(world.case["teacher"], world.row["sigma"])
    q = NoisedMixture(world.case["generator"], world.row["sigma"], mean, std)
    return torch.cat(torch.autograd.grad(descended(p, q), (mean, std)))


def assert_gradient(world: Any, objective: Objective, expected: Tensor) -> None:
    error = (world.gradients(objective) - expected).abs().max() / expected.abs().max()
    assert float(error) < 1e-8


def test_every_preset_is_here() -> None:
    # DMD's term is f-distill's with reverse KL, and is tested as DMD2's. terms_alone has no losses of its own.
    tested = {*MATCHING, *EXPANSIONS, *SID, *SDS, *ADVERSARIAL, *TDM}
    assert {file.stem for file in CONF_OBJECTIVE.glob("*.yaml")} - {"dmd", "terms_alone"} == tested


@pytest.mark.parametrize("name", MATCHING)
def test_distribution_matching(world: Any, name: str) -> None:
    objective: Any = preset(name)
    divergence: Divergence = objective.divergence
    expected = expected_gradient(
        world, lambda p, q: NoisedMixture.integral(q.log.exp() * divergence.f((p.log - q.log).clamp(-300, 300).exp()))
    )
    assert_gradient(world, objective, expected)


@pytest.mark.parametrize("name", EXPANSIONS)
def test_expansion(world: Any, name: str) -> None:
    objective: Any = preset(name)
    divergence: Divergence = objective.divergence
    expected = expected_gradient(
        world,
        lambda p, q: NoisedMixture.integral(
            q.log.exp() * divergence.weight(p.log - q.log) * (p.score - q.score).square()
        ),
    )
    assert_gradient(world, objective, expected)


@pytest.mark.parametrize("name", SID)
def test_sid(world: Any, name: str) -> None:
    """``grad E_q|d|^2 + (1 - 2 alpha) E_q'|d|^2``, where q' moves the samples through two fixed scores."""
    objective: Any = preset(name)
    frozen = NoisedMixture.fixed(world.case["generator"], world.row["sigma"])

    def descended(p: NoisedMixture, q: NoisedMixture) -> Tensor:
        exact = NoisedMixture.integral(q.log.exp() * (p.score - q.score).square())
        moved = NoisedMixture.integral(q.log.exp() * (p.score - frozen.score).square())
        return exact + (1 - 2 * objective.alpha) * moved

    assert_gradient(world, objective, expected_gradient(world, descended))


def test_sds_descends_the_cross_entropy(world: Any) -> None:
    """``E_q[-log p]``: reverse KL without the entropy term."""
    expected = expected_gradient(world, lambda p, q: -NoisedMixture.integral(q.log.exp() * p.log))
    assert_gradient(world, preset("sds"), expected)


def test_tdm_descends_a_pseudo_huber_metric(world: Any) -> None:
    """Towards ``x - (x0_fake - x0_teacher)``, which reverse KL asks for."""
    predictions = world.predictions
    objective = instantiate(configure("train", "objective=tdm").objective)
    x = predictions.x_generated.detach().requires_grad_()
    losses, _ = objective(replace(predictions, x_generated=x))
    (ours,) = torch.autograd.grad(losses.sum(), x)
    target = (x + predictions.x0_teacher - predictions.x0_fake).detach()
    sizes = (x - predictions.x0_teacher).detach().abs().flatten(1).sum(1)
    metric = ((x - target).square() + 1e-3**2).sqrt().flatten(1).sum(1) / sizes
    (expected,) = torch.autograd.grad(metric.sum(), x)
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_a_gan_alone(world: Any, name: str) -> None:
    """With the exact ratio as its critic: ``KL(q||p) - 2 JS(p||q)`` (arXiv 1701.04862, theorem 2.5)."""
    losses = generator_loss(world.predictions.log_ratio[:, None])
    nothing, diagnostics = preset(name)(replace(world.predictions, x0_teacher=None, x0_fake=None, adversarial=losses))
    assert nothing is None and diagnostics == {}

    def descended(p: NoisedMixture, q: NoisedMixture) -> Tensor:
        log_mean = torch.logaddexp(p.log, q.log) - math.log(2)
        twice_js = p.log.exp() * (p.log - log_mean) + q.log.exp() * (q.log - log_mean)
        return NoisedMixture.integral(q.log.exp() * (q.log - p.log) - twice_js)

    expected = expected_gradient(world, descended)
    ours = torch.cat(torch.autograd.grad((world.node_weight * losses).sum(), (world.mean, world.std)))
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-8

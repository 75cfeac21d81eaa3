"""f-distill against quadrature of ``D_f(p||q)`` and its gradients."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from onestep.divergences import ForwardKL, JensenShannon, ReverseKL
from onestep.noise import per_sample_sum
from onestep.objectives.base import Evaluation, Objective
from onestep.objectives.f_distill import FDistill
from onestep.objectives.weighting import DMDWeighting, UnitWeighting


def images(count: int = 6, dtype: torch.dtype = torch.float32) -> Evaluation:
    generator = torch.Generator().manual_seed(0)
    x, x0_teacher, x0_fake, noise = torch.randn(4, count, 3, 4, 4, generator=generator, dtype=dtype)
    sigma = torch.linspace(0.1, 2.0, count, dtype=dtype)
    x.requires_grad_()
    log_ratio = torch.randn(count, generator=generator, dtype=dtype)
    return Evaluation(x, x + sigma.reshape(-1, 1, 1, 1) * noise, sigma, x0_teacher, x0_fake, log_ratio)


def gradient(objective: Objective, evaluation: Evaluation) -> torch.Tensor:
    return torch.autograd.grad(objective(evaluation)[0].sum(), evaluation.x_generated)[0]


def test_gradient_is_that_of_the_divergence(truth: Any) -> None:
    gradients = truth.gradients(FDistill(truth.divergence, UnitWeighting(), normalize_weight=False))
    assert truth.relative_error(gradients) < 1e-9


def test_f_gives_the_value_of_the_divergence(truth: Any) -> None:
    value = truth.mean_over_nodes(truth.divergence.f(truth.evaluation.log_ratio.exp()))
    assert float(value) == pytest.approx(truth.row["value"], rel=1e-9)


def test_gradient_by_the_sample_is_exactly_the_weighted_score_difference() -> None:
    evaluation = images()
    assert evaluation.x0_fake is not None and evaluation.log_ratio is not None
    losses, diagnostics = FDistill(JensenShannon(), DMDWeighting(), normalize_weight=False)(evaluation)
    sigma = evaluation.sigma.reshape(-1, 1, 1, 1)
    delta = (evaluation.x0_teacher - evaluation.x0_fake) / sigma**2
    factor = DMDWeighting()(evaluation, power=2) * torch.sigmoid(evaluation.log_ratio)
    expected = -factor.reshape(-1, 1, 1, 1) * delta
    (actual,) = torch.autograd.grad(losses.sum(), evaluation.x_generated)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.detach(), per_sample_sum(expected.square()) / 2)
    assert not any(value.requires_grad for value in diagnostics.values())


def test_gradient_far_below_the_precision_of_x_survives() -> None:
    """A loss that subtracts the gradient from x rounds this gradient, 1e-9 of x, away."""
    evaluation = images()
    assert evaluation.x0_fake is not None
    tiny = 1e-9 * evaluation.x0_fake.sign()
    close = replace(evaluation, x0_teacher=torch.zeros_like(tiny), x0_fake=tiny, sigma=torch.ones(6))
    actual = gradient(FDistill(ReverseKL(), UnitWeighting(), normalize_weight=False), close)
    torch.testing.assert_close(actual, tiny, rtol=1e-6, atol=0)


def test_normalised_weight_has_mean_one_and_keeps_its_proportions() -> None:
    evaluation = images()
    assert evaluation.log_ratio is not None
    plain, normalised = (gradient(FDistill(ForwardKL(), UnitWeighting(), flag), evaluation) for flag in (False, True))
    torch.testing.assert_close(normalised * evaluation.log_ratio.exp().mean(), plain)


def test_normalising_weights_that_underflow_gives_no_nan() -> None:
    evaluation = replace(images(), log_ratio=torch.full((6,), -200.0))
    assert (gradient(FDistill(ForwardKL(), UnitWeighting(), True), evaluation) == 0).all()


def test_diagnostics() -> None:
    evaluation = images()
    assert evaluation.x0_fake is not None and evaluation.log_ratio is not None
    _, diagnostics = FDistill(ForwardKL(), UnitWeighting(), normalize_weight=True)(evaluation)
    ratio = evaluation.log_ratio.exp()
    expected = {
        "weight": ratio,
        "score_gap": (evaluation.x0_teacher - evaluation.x0_fake).abs().mean(),
        "log_ratio": evaluation.log_ratio,
    }
    assert diagnostics.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(diagnostics[name], value)


def test_only_x_generated_is_differentiated() -> None:
    evaluation = images()
    assert evaluation.x0_fake is not None and evaluation.log_ratio is not None
    others = [evaluation.x0_teacher, evaluation.x0_fake, evaluation.log_ratio]
    for tensor in others:
        tensor.requires_grad_()
    losses, _ = FDistill(ForwardKL(), DMDWeighting(), normalize_weight=True)(evaluation)
    gradients = torch.autograd.grad(losses.sum(), others, allow_unused=True)
    assert all(gradient is None for gradient in gradients)


def test_what_it_needs() -> None:
    needing = FDistill(ForwardKL(), UnitWeighting(), normalize_weight=False)
    free = FDistill(ReverseKL(), UnitWeighting(), normalize_weight=False)
    objectives: list[Objective] = [needing, free]
    assert [o.needs_ratio for o in objectives] == [True, False]
    assert [o.differentiates_scores for o in objectives] == [False, False]
    evaluation = replace(images(), log_ratio=None)
    with pytest.raises(ValueError, match="ForwardKL .* needs a discriminator"):
        needing(evaluation)
    assert "log_ratio" not in free(evaluation)[1]
    with pytest.raises(ValueError, match="x0_fake is missing"):
        free(replace(evaluation, x0_fake=None))

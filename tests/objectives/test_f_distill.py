"""f-distill against quadrature of ``D_f(p||q)`` and its gradients."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from onestep.noise import per_sample_sum
from onestep.objectives.base import Objective, Predictions
from onestep.objectives.divergences import ForwardKL, JensenShannon, ReverseKL
from onestep.objectives.f_distill import FDistill
from onestep.objectives.weighting import DMDWeighting, UnitWeighting


def images(count: int = 6, dtype: torch.dtype = torch.float32) -> Predictions:
    generator = torch.Generator().manual_seed(0)
    x, x0_teacher, x0_fake, noise = torch.randn(4, count, 3, 4, 4, generator=generator, dtype=dtype)
    sigma = torch.linspace(0.1, 2.0, count, dtype=dtype)
    x.requires_grad_()
    log_ratio = torch.randn(count, generator=generator, dtype=dtype)
    return Predictions(x, x + sigma.reshape(-1, 1, 1, 1) * noise, sigma, x0_teacher, x0_fake, log_ratio)


def gradient(objective: Objective, predictions: Predictions) -> torch.Tensor:
    losses, _ = objective(predictions)
    assert losses is not None
    return torch.autograd.grad(losses.sum(), predictions.x_generated)[0]


def test_gradient_is_that_of_the_divergence(truth: Any) -> None:
    gradients = truth.gradients(FDistill(truth.divergence, UnitWeighting(), normalize_weight=False))
    assert truth.relative_error(gradients) < 1e-9


def test_f_gives_the_value_of_the_divergence(truth: Any) -> None:
    value = truth.mean_over_nodes(truth.divergence.f(truth.predictions.log_ratio.exp()))
    assert float(value) == pytest.approx(truth.row["value"], rel=1e-9)


def test_gradient_by_the_sample_is_exactly_the_weighted_score_difference() -> None:
    predictions = images()
    assert predictions.x0_teacher is not None and predictions.x0_fake is not None
    assert predictions.log_ratio is not None
    losses, diagnostics = FDistill(JensenShannon(), DMDWeighting(), normalize_weight=False)(predictions)
    sigma = predictions.sigma.reshape(-1, 1, 1, 1)
    delta = (predictions.x0_teacher - predictions.x0_fake) / sigma**2
    factor = DMDWeighting()(predictions, power=2) * torch.sigmoid(predictions.log_ratio)
    expected = -factor.reshape(-1, 1, 1, 1) * delta
    (actual,) = torch.autograd.grad(losses.sum(), predictions.x_generated)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.detach(), per_sample_sum(expected.square()) / 2)
    assert not any(value.requires_grad for value in diagnostics.values())


def test_gradient_far_below_the_precision_of_x_survives() -> None:
    """A loss that subtracts the gradient from x rounds this gradient, 1e-9 times x, to 0."""
    predictions = images()
    assert predictions.x0_fake is not None
    tiny = 1e-9 * predictions.x0_fake.sign()
    close = replace(predictions, x0_teacher=torch.zeros_like(tiny), x0_fake=tiny, sigma=torch.ones(6))
    actual = gradient(FDistill(ReverseKL(), UnitWeighting(), normalize_weight=False), close)
    torch.testing.assert_close(actual, tiny, rtol=1e-6, atol=0)


def test_normalized_weight_has_mean_one_and_keeps_its_proportions() -> None:
    predictions = images()
    assert predictions.log_ratio is not None
    plain, normalized = (gradient(FDistill(ForwardKL(), UnitWeighting(), flag), predictions) for flag in (False, True))
    torch.testing.assert_close(normalized * predictions.log_ratio.exp().mean(), plain)


def test_normalising_weights_that_underflow_gives_no_nan() -> None:
    predictions = replace(images(), log_ratio=torch.full((6,), -200.0))
    assert (gradient(FDistill(ForwardKL(), UnitWeighting(), True), predictions) == 0).all()


def test_diagnostics() -> None:
    predictions = images()
    assert predictions.x0_teacher is not None and predictions.x0_fake is not None
    assert predictions.log_ratio is not None
    _, diagnostics = FDistill(ForwardKL(), UnitWeighting(), normalize_weight=True)(predictions)
    ratio = predictions.log_ratio.exp()
    expected = {
        "weight": ratio,
        "score_gap": (predictions.x0_teacher - predictions.x0_fake).abs().mean(),
        "log_ratio": predictions.log_ratio,
    }
    assert diagnostics.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(diagnostics[name], value)


def test_only_x_generated_is_differentiated() -> None:
    predictions = images()
    assert predictions.x0_teacher is not None and predictions.x0_fake is not None
    assert predictions.log_ratio is not None
    others = [predictions.x0_teacher, predictions.x0_fake, predictions.log_ratio]
    for tensor in others:
        tensor.requires_grad_()
    losses, _ = FDistill(ForwardKL(), DMDWeighting(), normalize_weight=True)(predictions)
    gradients = torch.autograd.grad(losses.sum(), others, allow_unused=True)
    assert all(gradient is None for gradient in gradients)


def test_what_it_needs() -> None:
    needing = FDistill(ForwardKL(), UnitWeighting(), normalize_weight=False)
    free = FDistill(ReverseKL(), UnitWeighting(), normalize_weight=False)
    objectives: list[Objective] = [needing, free]
    assert [o.needs_ratio for o in objectives] == [True, False]
    assert [o.differentiates_scores for o in objectives] == [False, False]
    predictions = replace(images(), log_ratio=None)
    with pytest.raises(ValueError, match="log_ratio is missing: ForwardKL"):
        needing(predictions)
    assert "log_ratio" not in free(predictions)[1]
    with pytest.raises(ValueError, match="x0_fake is missing"):
        free(replace(predictions, x0_fake=None))

"""Uni-Instruct against quadrature of ``E_q[h |delta|^2]`` and its gradients."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from onestep.noise import per_sample_sum
from onestep.objectives.base import Objective
from onestep.objectives.divergences import ForwardKL, ReverseKL
from onestep.objectives.uni_instruct import UniInstruct
from onestep.objectives.weighting import DMDWeighting, UnitWeighting


def test_gradient_is_that_of_the_expansion(truth: Any) -> None:
    gradients = truth.gradients(UniInstruct(truth.divergence, UnitWeighting(), normalize_weight=False))
    assert truth.relative_error(gradients, "expanded_") < 1e-9


def test_weight_gives_the_value_of_the_expansion(truth: Any) -> None:
    predictions = truth.predictions
    delta = (predictions.x0_teacher - predictions.x0_fake) / truth.row["sigma"] ** 2
    value = truth.mean_over_nodes(truth.divergence.weight(predictions.log_ratio) * per_sample_sum(delta.square()))
    assert float(value) == pytest.approx(truth.row["expanded_value"], rel=1e-9)


def test_detaching_the_ratio_biases_the_gradient(gaussian_pair: Any) -> None:
    """The published variant: -1.813 by the generator's std where the derivative is -2.764."""
    exact = gaussian_pair.gradients(UniInstruct(ForwardKL(), UnitWeighting(), False))
    detached = gaussian_pair.gradients(UniInstruct(ForwardKL(), UnitWeighting(), False, exact_ratio_gradient=False))
    assert float(exact[1]) == pytest.approx(-2.764, abs=5e-4)
    assert float(detached[1]) == pytest.approx(-1.813, abs=5e-4)


def test_reverse_kl_is_sid_with_alpha_one_half(gaussian_pair: Any) -> None:
    """Ours is twice SiD's, d . (x0_fake - x) + (1 - alpha) |d|^2 (Zhou et al. 2024, arXiv 2404.04057)."""
    predictions = gaussian_pair.predictions
    d = predictions.x0_teacher - predictions.x0_fake
    sid = per_sample_sum(d * (predictions.x0_fake - predictions.x_generated)) + 0.5 * per_sample_sum(d.square())
    losses, _ = UniInstruct(ReverseKL(), UnitWeighting(), normalize_weight=False)(predictions)
    torch.testing.assert_close(losses, 2 * sid / gaussian_pair.row["sigma"] ** 4, rtol=1e-12, atol=1e-14)


def test_normalized_weight_divides_the_whole_loss_by_the_mean_weight(gaussian_pair: Any) -> None:
    predictions = gaussian_pair.predictions
    plain, _ = UniInstruct(ForwardKL(), UnitWeighting(), normalize_weight=False)(predictions)
    normalized, _ = UniInstruct(ForwardKL(), UnitWeighting(), normalize_weight=True)(predictions)
    torch.testing.assert_close(normalized * predictions.log_ratio.exp().mean(), plain)


def test_dmd_weighting_makes_the_loss_free_of_units(gaussian_pair: Any) -> None:
    """In ten times smaller units of data and noise, reverse KL's loss is ten times larger: distance^2 / distance."""
    predictions = gaussian_pair.predictions
    fields = ("x_generated", "x_sigma", "sigma", "x0_teacher", "x0_fake")
    scaled = replace(predictions, **{name: 10 * getattr(predictions, name) for name in fields})
    objective = UniInstruct(ReverseKL(), DMDWeighting(), normalize_weight=False)
    far = (predictions.x_generated - predictions.x0_teacher).abs().flatten() > 1e-4  # no smallest_distance
    torch.testing.assert_close(objective(scaled)[0][far], 10 * objective(predictions)[0][far])


@pytest.mark.parametrize("name", ["x0_teacher", "x0_fake", "log_ratio"])
def test_scores_without_a_graph_are_refused(gaussian_pair: Any, name: str) -> None:
    cut = replace(gaussian_pair.predictions, **{name: getattr(gaussian_pair.predictions, name).detach()})
    with pytest.raises(ValueError, match=f"{name} must carry a graph"):
        UniInstruct(ForwardKL(), UnitWeighting(), normalize_weight=False)(cut)
    with torch.no_grad():  # validation needs no graph
        UniInstruct(ForwardKL(), UnitWeighting(), normalize_weight=False)(cut)


def test_a_detached_ratio_is_accepted_where_it_is_not_differentiated(gaussian_pair: Any) -> None:
    cut = replace(gaussian_pair.predictions, log_ratio=gaussian_pair.predictions.log_ratio.detach())
    losses, _ = UniInstruct(ForwardKL(), UnitWeighting(), False, exact_ratio_gradient=False)(cut)
    expected, _ = UniInstruct(ForwardKL(), UnitWeighting(), False)(gaussian_pair.predictions)
    torch.testing.assert_close(losses, expected)


def test_what_it_needs(gaussian_pair: Any) -> None:
    objective: Objective = UniInstruct(ForwardKL(), UnitWeighting(), normalize_weight=False)
    assert objective.needs_ratio and objective.needs_fake_score and objective.differentiates_scores
    with pytest.raises(ValueError, match="log_ratio is missing: ForwardKL"):
        objective(replace(gaussian_pair.predictions, log_ratio=None))
    with pytest.raises(ValueError, match="x0_fake is missing"):
        objective(replace(gaussian_pair.predictions, x0_fake=None))
    free = UniInstruct(ReverseKL(), UnitWeighting(), normalize_weight=False)
    assert "log_ratio" not in free(replace(gaussian_pair.predictions, log_ratio=None))[1]

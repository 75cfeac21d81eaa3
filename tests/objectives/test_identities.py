"""Identities between the papers' losses, for each sample and not only in expectation."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from onestep.noise import expand_like
from onestep.objectives.base import Objective, Predictions
from onestep.objectives.divergences import (
    Alpha,
    Divergence,
    ForwardKL,
    NeymanChi2,
    PearsonChi2,
    ReverseKL,
    SquaredHellinger,
)
from onestep.objectives.f_distill import FDistill
from onestep.objectives.sds import SDS
from onestep.objectives.sid import SiD
from onestep.objectives.uni_instruct import UniInstruct
from onestep.objectives.weighting import DMDWeighting, DreamFusionWeighting, PowerWeighting, UnitWeighting


@pytest.fixture
def predictions() -> Predictions:
    """Independent random images and predictions, float64, so that no identity holds by accident."""
    random = torch.Generator().manual_seed(0)
    x, noise, a, b = torch.randn(4, 6, 2, 4, 4, generator=random, dtype=torch.float64)
    x.requires_grad_()
    sigma = 0.1 + 3 * torch.rand(6, generator=random, dtype=torch.float64)
    x_sigma = x + expand_like(sigma, x) * noise
    return Predictions(
        x_generated=x,
        x_sigma=x_sigma,
        sigma=sigma,
        x0_teacher=0.7 * x_sigma.tanh() + a,
        x0_fake=0.4 * x_sigma.sin() + b,
        log_ratio=x_sigma.flatten(1).sum(1) / 20,
    )


def gradient(objective: Objective, predictions: Predictions) -> Tensor:
    losses, _ = objective(predictions)
    assert losses is not None
    (result,) = torch.autograd.grad(losses.sum(), predictions.x_generated, retain_graph=True)
    return result


def test_f_distill_with_reverse_kl_is_the_distribution_matching_of_dmd2(predictions: Predictions) -> None:
    """DMD's loss as in its paper (arXiv 2311.18828, eq. 7 and 8, algorithm 2): a mean over dimensions."""
    assert predictions.x0_teacher is not None and predictions.x0_fake is not None
    x, x0_teacher, x0_fake = predictions.x_generated, predictions.x0_teacher.detach(), predictions.x0_fake.detach()
    normalizer = (x.detach() - x0_teacher).abs().mean((1, 2, 3), keepdim=True)
    step = (x0_fake - x0_teacher) / normalizer
    dmd = 0.5 * (x - (x - step).detach()).square().mean((1, 2, 3)).sum()
    (expected,) = torch.autograd.grad(dmd, x, retain_graph=True)
    ours = gradient(FDistill(ReverseKL(), DMDWeighting(), normalize_weight=True), predictions)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)


def test_vsd_is_the_difference_of_eps_predictions(predictions: Predictions) -> None:
    """ProlificDreamer's eq. 9: w(t) (eps_teacher - eps_fake), w = sigma_t^2 of the variance preserving process."""
    assert predictions.x0_teacher is not None and predictions.x0_fake is not None
    sigma = expand_like(predictions.sigma, predictions.x_sigma)
    eps_teacher, eps_fake = ((predictions.x_sigma - x0) / sigma for x0 in (predictions.x0_teacher, predictions.x0_fake))
    alpha = 1 / (1 + sigma**2).sqrt()
    expected = (1 - alpha**2) * (eps_teacher - eps_fake)
    ours = gradient(FDistill(ReverseKL(), DreamFusionWeighting(), normalize_weight=True), predictions)
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-10, atol=1e-14)


def test_diff_instruct_is_the_difference_of_x0_predictions(predictions: Predictions) -> None:
    assert predictions.x0_teacher is not None and predictions.x0_fake is not None
    ours = gradient(FDistill(ReverseKL(), PowerWeighting(2.0), normalize_weight=True), predictions)
    expected = (predictions.x0_fake - predictions.x0_teacher).detach()
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)


def test_uni_instruct_with_reverse_kl_is_sim(predictions: Predictions) -> None:
    """Theorem 3.1 of arXiv 2410.16794 for the squared distance: with the score of q frozen in the weights alone,
    ``E_q|d|^2`` has the gradient of ``|d|^2 + 2 d . (score_q - score of the noise)``."""
    assert predictions.x0_teacher is not None and predictions.x0_fake is not None
    sigma = expand_like(predictions.sigma, predictions.x_sigma)
    score_p, score_q = ((x0 - predictions.x_sigma) / sigma**2 for x0 in (predictions.x0_teacher, predictions.x0_fake))
    score_noise = (predictions.x_generated - predictions.x_sigma) / sigma**2
    d = score_p - score_q
    sim = (d * d + 2 * d * (score_q - score_noise)).sum()
    (expected,) = torch.autograd.grad(sim, predictions.x_generated, retain_graph=True)
    ours = gradient(UniInstruct(ReverseKL(), UnitWeighting(), normalize_weight=True), predictions)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_sim_is_sid_with_alpha_one_half(predictions: Predictions) -> None:
    uni = UniInstruct(ReverseKL(), DMDWeighting(), normalize_weight=True)
    torch.testing.assert_close(SiD(0.5, DMDWeighting())(predictions)[0], uni(predictions)[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_sid_is_its_papers_loss_twice(predictions: Predictions, alpha: float) -> None:
    """Eq. 23 of arXiv 2404.04057 without its weight: ``(1 - alpha) |d|^2 + d . (x0_fake - x)``."""
    assert predictions.x0_teacher is not None and predictions.x0_fake is not None
    d = predictions.x0_teacher - predictions.x0_fake
    loss = (1 - alpha) * d.square() + d * (predictions.x0_fake - predictions.x_generated)
    expected = 2 * loss.flatten(1).sum(1) / predictions.sigma**4
    torch.testing.assert_close(SiD(alpha, UnitWeighting())(predictions)[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("alpha", "cousin", "times"),
    [
        (0.0, ReverseKL(), 1.0),
        (0.5, SquaredHellinger(), 4.0),
        (1.0, ForwardKL(), 1.0),
        (2.0, PearsonChi2(), 0.5),
        (-1.0, NeymanChi2(), 0.5),
    ],
)
@pytest.mark.parametrize("method", [FDistill, UniInstruct])
def test_alpha_divergences_are_their_named_cousins(
    predictions: Predictions, method: Any, alpha: float, cousin: Divergence, times: float
) -> None:
    """The ratio of r^alpha to the named divergence's weight is a constant."""
    ours = gradient(method(Alpha(alpha), UnitWeighting(), normalize_weight=False), predictions)
    theirs = gradient(method(cousin, UnitWeighting(), normalize_weight=False), predictions)
    torch.testing.assert_close(ours, times * theirs, rtol=1e-10, atol=1e-12)


def test_sds_is_reverse_kl_with_the_sample_as_the_fake_prediction(predictions: Predictions) -> None:
    swapped = replace(predictions, x0_fake=predictions.x_generated)
    for weighting in (UnitWeighting(), DreamFusionWeighting(), DMDWeighting()):
        expected = gradient(FDistill(ReverseKL(), weighting, normalize_weight=True), swapped)
        torch.testing.assert_close(gradient(SDS(weighting), predictions), expected, rtol=1e-12, atol=1e-14)

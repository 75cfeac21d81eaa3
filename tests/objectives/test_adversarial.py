"""The GAN losses: values, signs, and the density ratio at the discriminator's optimum."""

import math

import pytest
import torch

from onestep.objectives.adversarial import discriminator_loss, generator_loss, log_ratio_of


def test_values() -> None:
    logit = torch.tensor([[math.log(3.0)], [-math.log(3.0)]])  # probabilities of being real: 3/4 and 1/4
    expected = torch.tensor([math.log(4 / 3), math.log(4.0)])
    torch.testing.assert_close(generator_loss(logit), expected)
    both = discriminator_loss(logits_real=logit, logits_generated=torch.zeros(2, 1))
    torch.testing.assert_close(both, expected + math.log(2))
    # Positions and heads are averaged: after the logistic function in a loss, before it in the ratio.
    torch.testing.assert_close(generator_loss(logit.T), expected.mean()[None])
    torch.testing.assert_close(discriminator_loss(logit.T, torch.zeros(1, 2)), expected.mean()[None] + math.log(2))
    torch.testing.assert_close(log_ratio_of(torch.tensor([[1.0, 4.0]])), torch.tensor([2.5]))


def test_a_generator_that_is_found_out_keeps_its_gradient() -> None:
    logit = torch.tensor([[-50.0], [50.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(generator_loss(logit).sum(), logit)
    assert gradient.flatten().tolist() == pytest.approx([-1.0, 0.0], abs=1e-6)


def test_a_bound_clamps_the_generators_logits() -> None:
    logit = torch.tensor([[-50.0], [-9.0], [50.0]], requires_grad=True)
    losses = generator_loss(logit, bound=10.0)
    (gradient,) = torch.autograd.grad(losses.sum(), logit)
    assert losses.tolist() == pytest.approx([10.0, 9.0, 0.0], abs=2e-4)
    assert gradient.flatten().tolist() == pytest.approx([0.0, -1.0, 0.0], abs=2e-4)


def test_optimal_logit_is_the_log_density_ratio() -> None:
    """Two outcomes with real probabilities p and generated q: Newton's method finds the optimum log p/q."""
    p, q = torch.tensor([0.9, 0.1], dtype=torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64)
    logit = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for _ in range(30):
        zero = torch.zeros_like(logit)
        # The two terms have different weights; the other side's term at logit 0 is a constant.
        real, generated = logit[:, None], zero[:, None]
        loss = (p * discriminator_loss(real, generated) + q * discriminator_loss(generated, real)).sum()
        (slope,) = torch.autograd.grad(loss, logit, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), logit)
        logit = (logit - slope / curvature).detach().requires_grad_()
    torch.testing.assert_close(logit.detach(), (p / q).log())

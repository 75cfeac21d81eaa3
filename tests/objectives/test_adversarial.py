"""The GAN losses: values, signs, and the density ratio at the discriminator's optimum."""

import math

import pytest
import torch

from onestep.objectives.adversarial import discriminator_loss, generator_loss


def test_values() -> None:
    logit = torch.tensor([math.log(3.0), -math.log(3.0)])  # probabilities of being real: 3/4 and 1/4
    torch.testing.assert_close(generator_loss(logit), torch.tensor([math.log(4 / 3), math.log(4.0)]))
    both = discriminator_loss(logit_real=logit, logit_generated=torch.zeros(2))
    torch.testing.assert_close(both, torch.tensor([math.log(4 / 3), math.log(4.0)]) + math.log(2))


def test_a_generator_that_is_found_out_keeps_its_gradient() -> None:
    logit = torch.tensor([-50.0, 50.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(generator_loss(logit).sum(), logit)
    assert gradient.tolist() == pytest.approx([-1.0, 0.0], abs=1e-6)


def test_optimal_logit_is_the_log_density_ratio() -> None:
    """Two outcomes with real probabilities p and generated q: Newton's method finds the optimum log p/q."""
    p, q = torch.tensor([0.9, 0.1], dtype=torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64)
    logit = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for _ in range(30):
        zero = torch.zeros_like(logit)
        # The two terms have different weights; the other side's term at logit 0 is a constant.
        loss = (p * discriminator_loss(logit, zero) + q * discriminator_loss(zero, logit)).sum()
        (slope,) = torch.autograd.grad(loss, logit, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), logit)
        logit = (logit - slope / curvature).detach().requires_grad_()
    torch.testing.assert_close(logit.detach(), (p / q).log())

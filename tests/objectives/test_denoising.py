"""The weight of the fake score's error, by the prediction whose error it is."""

import pytest
import torch

from onestep.noise import add_noise
from onestep.objectives.denoising import ErrorWeight, denoising_loss, error_weight
from tests.helpers.edm_models import tiny_denoiser


@pytest.mark.parametrize("of", ["x0", "noise", "v"])
def test_the_weighted_error_is_that_of_the_prediction(of: ErrorWeight) -> None:
    """With ``v = alpha noise - alpha sigma x0``, ``alpha = (1 + sigma^2)^(-1/2)`` (arXiv 2202.00512, sec. 4)."""
    x0, noise, guess = torch.randn(3, 4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.5, 1.0, 7.0], dtype=torch.float64)
    level, x_sigma = sigma.reshape(4, 1, 1, 1), add_noise(x0, noise, sigma)
    implied = (x_sigma - guess) / level  # noise
    alpha = (1 + level**2).rsqrt()
    error = {
        "x0": guess - x0, "noise": implied - noise, "v": alpha * (implied - noise) - alpha * level * (guess - x0),
    }[of]  # fmt: skip
    loss = denoising_loss(guess, x0, error_weight(tiny_denoiser(), sigma, of))
    torch.testing.assert_close(loss, error.square().mean((1, 2, 3)))

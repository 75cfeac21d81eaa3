"""The preconditionings against table 1 of arXiv 2206.00364."""

import math

import pytest
import torch

from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.edm.preconditioning import IDDPMPreconditioning, VEPreconditioning, VPPreconditioning
from onestep.noise import karras_sigmas
from onestep.samplers import HeunSampler


def test_vp_in_its_own_time() -> None:
    """At time t the noise is sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), and c_noise is 999 t."""
    time = torch.tensor([1e-3, 0.1, 0.5, 1.0], dtype=torch.float64)
    sigma = (torch.exp(19.9 * time**2 / 2 + 0.1 * time) - 1).sqrt()
    c_skip, c_out, c_in, c_noise = VPPreconditioning().coefficients(sigma)
    torch.testing.assert_close(c_noise, 999 * time, rtol=1e-9, atol=0)
    # DDPM's own view of the same: x_t = alpha x0 + sqrt(1 - alpha^2) noise, with alpha = c_in.
    torch.testing.assert_close(c_in, torch.exp(-(19.9 * time**2 / 4 + 0.05 * time)), rtol=1e-9, atol=0)
    assert torch.equal(c_skip, torch.ones_like(sigma)) and torch.equal(c_out, -sigma)


def test_ve() -> None:
    sigma = torch.tensor([0.02, 2.0, 100.0])
    c_skip, c_out, c_in, c_noise = VEPreconditioning().coefficients(sigma)
    assert c_skip.tolist() == c_in.tolist() == [1, 1, 1] and torch.equal(c_out, sigma)
    assert c_noise.tolist() == pytest.approx([math.log(0.01), 0, math.log(50)], rel=1e-6)


def test_iddpm_levels() -> None:
    """u_j = sqrt(alpha_bar_M / alpha_bar_j - 1) by telescoping, but for u_0, whose ratio is held at C_1 = 1/1000."""
    precondition = IDDPMPreconditioning()
    alpha_bar = [math.sin(math.pi / 2 * j / 1000 / 1.008) ** 2 for j in range(1001)]
    expected = [math.sqrt(max(alpha_bar[1000] / alpha_bar[j] - 1, 0)) for j in range(1, 1001)]
    expected = [math.sqrt(1000 * (expected[0] ** 2 + 1) - 1), *expected]
    assert precondition.u.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    u = precondition.u[[0, 1, 500, 999]]
    c_skip, c_out, c_in, c_noise = precondition.coefficients(u)
    assert c_noise.tolist() == [999, 998, 499, 0]
    assert torch.equal(c_skip, torch.ones_like(u)) and torch.equal(c_out, -u)
    torch.testing.assert_close(c_in, 1 / (u**2 + 1).sqrt())
    between = torch.lerp(precondition.u[500], precondition.u[501], 0.4)
    assert torch.equal(precondition.round_sigma(between), precondition.u[500])


@pytest.mark.parametrize("preconditioning", ["vp", "ve", "iddpm"])
def test_training_weight_is_one_over_variance(preconditioning: str) -> None:
    tiny = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    denoiser = EDMDenoiser((1, 8, 8), options=tiny, preconditioning=preconditioning)  # type: ignore[arg-type]
    assert denoiser.loss_weight(torch.tensor([0.5, 4.0])).tolist() == [4.0, 1 / 16]
    # Nearly zero, a fresh raw network leaves the image as it is.
    x = torch.ones(1, 1, 8, 8)
    torch.testing.assert_close(denoiser(x, torch.tensor([0.5])), x, rtol=0, atol=1e-2)


def test_the_sampler_keeps_to_the_levels_of_the_network() -> None:
    tiny = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    denoiser = EDMDenoiser(
        (1, 8, 8), sigma_min=0.01, sigma_max=50.0, options=tiny, preconditioning="iddpm",
    )  # fmt: skip
    levels = HeunSampler(steps=5, sigma_min=0.002, sigma_max=80).sigmas(denoiser)
    u = denoiser.precondition.get_buffer("u")
    assert all(level in u.tolist() for level in levels) and levels[-1] == 0
    nominal = [*karras_sigmas(5, 0.01, 50).tolist(), 0.0]
    for level, asked in zip(levels, nominal, strict=True):
        assert abs(level - asked) == pytest.approx((u - asked).abs().min().item(), abs=1e-5)
    with pytest.raises(ValueError, match=r"sampler.sigma_min=60.0, sampler.sigma_max=80.0: .* between 0\.01 and 50\.0"):
        HeunSampler(steps=5, sigma_min=60, sigma_max=80).sigmas(denoiser)

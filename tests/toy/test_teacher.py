"""The exact teacher against closed forms."""

import pytest
import torch

from onestep.samplers import HeunSampler
from onestep.toy.gaussian_mixture import GaussianMixture
from onestep.toy.teacher import MixtureTeacher


def test_it_is_the_posterior_mean() -> None:
    """One Gaussian N(0, s^2): x s^2 / (s^2 + sigma^2). Two distant ones: the denoiser of the nearer one."""
    x, sigma = torch.tensor([[1.0, -2.0]])[:, :, None, None], torch.tensor([0.5])
    single = MixtureTeacher(GaussianMixture.grid(side=1, spacing=1.0, std=2.0), guidance=1.0)
    torch.testing.assert_close(single(x, sigma), x * 4 / 4.25)
    ring = MixtureTeacher(GaussianMixture.ring(modes=2, radius=10.0, std=1e-3), guidance=1.0)
    torch.testing.assert_close(ring(x + 8, sigma).flatten(), torch.tensor([10.0, 0.0]), atol=1e-3, rtol=0)


def test_autocast_does_not_reach_it() -> None:
    teacher = MixtureTeacher(GaussianMixture.grid(side=5, spacing=0.5, std=0.05), guidance=1.0)
    x, sigma = torch.randn(64, 2, 1, 1, generator=torch.Generator().manual_seed(0)), torch.full((64,), 0.2)
    exact = teacher(x, sigma)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher(x, sigma), exact)


def test_its_samples_are_the_mixture() -> None:
    """Mean 0, variance 0.05^2 + the grid's 0.5^2 * 2 along each axis, and equally frequent modes."""
    mixture = GaussianMixture.grid(side=5, spacing=0.5, std=0.05)
    z = torch.randn(20000, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    x = HeunSampler(64, 0.002, 80.0)(MixtureTeacher(mixture, guidance=1.0), z).flatten(1)
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=0.02, rtol=0)
    torch.testing.assert_close(x.var(0), torch.full((2,), 0.5025), atol=0.015, rtol=0)
    counts = torch.cdist(x, mixture.means).argmin(1).bincount(minlength=25)
    assert counts.min() > 800 - 130 and counts.max() < 800 + 130  # 4.7 standard deviations of the counts


def test_there_is_nothing_to_guide_by() -> None:
    with pytest.raises(ValueError, match=r"guidance=1\.5: a mixture has no classes"):
        MixtureTeacher(GaussianMixture.ring(modes=2, radius=1.0, std=0.1), guidance=1.5)

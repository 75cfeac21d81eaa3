"""The benchmark of learned density ratios: its exact values, and what the recommended critic must reach."""

from pathlib import Path

import pytest
import torch

from benchmarks.ratio import Quality, by_level, fixed_student, kernel_density, measure
from onestep.toy.gaussian_mixture import GaussianMixture


def test_the_law_of_the_fixed_student_is_its_mixture() -> None:
    student = fixed_student()
    rng = torch.Generator().manual_seed(0)
    x = student(torch.randn(20_000, *student.noise_shape, generator=rng))
    mode = torch.cdist(x.flatten(1), student.mixture.means).argmin(1)
    share = torch.bincount(mode, minlength=25) / len(x)
    assert (share - student.mixture.log_weights.exp()).abs().max() < 0.01
    spread = torch.stack([x.flatten(1)[mode == one].std(0) for one in range(25) if one != 6])
    expected = student.mixture.variances.sqrt()[torch.arange(25) != 6]
    assert (spread / expected - 1).abs().max() < 0.1


def test_the_density_of_noised_samples_is_that_of_the_mixture() -> None:
    mixture = GaussianMixture.modes([0.3, 0.7], [[-1.0, 0.0], [0.5, 0.2]], [0.1, 0.4])
    rng = torch.Generator().manual_seed(0)
    sigma = torch.tensor([0.1, 0.5, 2.0]).repeat(20)
    x_sigma = mixture.sample(60, rng) + sigma[:, None] * torch.randn(60, 2, generator=rng)
    error = kernel_density(mixture.sample(20_000, rng), x_sigma, sigma) - mixture.log_prob(x_sigma, sigma)
    assert error.abs().max() < 0.2 and error.square().mean() < 0.05**2


def test_quality_by_hand() -> None:
    exact = torch.tensor([-1.0, 1.0, -2.0, 2.0, 0.0, 4.0, 0.0, 2.0])
    learned = torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0, 5.0, 2.0, 0.0])
    expected = [(1, 1, 1, 0), (2, 0.5, 0.75, 1), (2, 1, 0.75, 1), (1, -1, -3, 2)]
    assert by_level(exact, learned) == [Quality(*one) for one in expected]


@pytest.mark.slow
@pytest.mark.parametrize(
    "student",
    ["fixed", pytest.param("trained", marks=pytest.mark.xfail(reason="R^2 is 0.88 to 0.91 from run to run"))],
)
def test_the_recommended_critic_learns_the_ratio(student: str, tmp_path: Path) -> None:
    rows, _ = measure(student, ["points"], [], 0, str(tmp_path))
    row = next(row for row in rows if row.stage == "late" and row.critic == "points")
    relevant = [one for one in by_level(row.points.exact, row.learned) if one.spread > 0.1]
    assert relevant
    for one in relevant:
        assert one.r2 >= 0.9 and 0.9 <= one.slope <= 1.1, one

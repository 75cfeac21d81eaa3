"""The mixture against scipy, autograd, numerical integration and samples."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from onestep.toy.gaussian_mixture import GaussianMixture

WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
SIGMA = torch.tensor([0.01, 0.3, 1.0, 20.0], dtype=torch.float64)


def mixture(dimensions: int = 3, seed: int = 0) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(3, dimensions, dimensions, generator=generator, dtype=torch.float64)
    means = 2 * torch.randn(3, dimensions, generator=generator, dtype=torch.float64)
    return GaussianMixture(WEIGHTS, means, root @ root.mT)


def points(dimensions: int = 3) -> Tensor:
    return 3 * torch.randn(4, dimensions, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def covariances(gmm: GaussianMixture) -> Tensor:
    return torch.einsum("kde,ke,kfe->kdf", gmm.axes, gmm.variances, gmm.axes)


def test_log_prob_against_scipy() -> None:
    gmm = mixture()
    expected = []
    for x, sigma in zip(points(), SIGMA, strict=True):
        noised = covariances(gmm) + sigma**2 * torch.eye(3)
        densities = [
            stats.multivariate_normal(m.numpy(), c.numpy()).pdf(x.numpy())
            for m, c in zip(gmm.means, noised, strict=True)
        ]
        expected.append(math.log(sum(w * d for w, d in zip(WEIGHTS.tolist(), densities, strict=True))))
    actual = gmm.log_prob(points(), SIGMA)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


def test_covariances_survive_the_eigendecomposition() -> None:
    given = torch.tensor([[[2.0, 0.5], [0.5, 1.0]]], dtype=torch.float64)
    gmm = GaussianMixture(torch.ones(1, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64), given)
    torch.testing.assert_close(covariances(gmm), given)


def test_score_is_the_gradient_of_log_prob() -> None:
    x = points().requires_grad_()
    (expected,) = torch.autograd.grad(mixture().log_prob(x, SIGMA).sum(), x)
    torch.testing.assert_close(mixture().score(x, SIGMA), expected, rtol=1e-10, atol=1e-12)


def test_denoiser_and_score_obey_tweedie() -> None:
    x, gmm = points(), mixture()
    by_score = x + SIGMA[:, None] ** 2 * gmm.score(x, SIGMA)
    torch.testing.assert_close(gmm.denoise(x, SIGMA), by_score, rtol=1e-10, atol=1e-10)


def test_denoise_is_the_posterior_mean_by_integration() -> None:
    """One dimension, by the trapezoid rule over x0."""
    gmm = GaussianMixture.isotropic(
        WEIGHTS, torch.tensor([[-2.0], [0.5], [3.0]], dtype=torch.float64), torch.tensor([0.5, 0.2, 1.0]).double()
    )
    x0 = torch.linspace(-15, 15, 30_001, dtype=torch.float64)
    stds = torch.tensor([0.5, 0.2, 1.0])
    prior = sum(
        w * stats.norm(m, s).pdf(x0.numpy())
        for w, m, s in zip(WEIGHTS.tolist(), (-2, 0.5, 3), stds.tolist(), strict=True)
    )
    for x_sigma, sigma in ((-1.0, 0.4), (1.7, 1.0), (10.0, 5.0)):
        posterior = torch.as_tensor(prior) * (-0.5 * ((x_sigma - x0) / sigma) ** 2).exp()
        expected = float((posterior * x0).sum() / posterior.sum())
        x = torch.tensor([[x_sigma]], dtype=torch.float64)
        assert float(gmm.denoise(x, torch.tensor([sigma]).double())) == pytest.approx(expected, rel=1e-6)


def test_denoise_at_the_ends_of_sigma() -> None:
    """The sample itself at sigma = 0, the mixture's mean at a large sigma."""
    gmm, x = mixture(), points()
    torch.testing.assert_close(gmm.denoise(x, torch.zeros(4, dtype=torch.float64)), x)
    far = gmm.denoise(x, torch.full((4,), 1e6, dtype=torch.float64))
    torch.testing.assert_close(far, (WEIGHTS @ gmm.means).expand(4, 3), rtol=1e-5, atol=1e-5)


def test_far_from_every_component_nothing_underflows() -> None:
    gmm = mixture().to(dtype=torch.float32)
    x, sigma = torch.full((1, 3), 1e4), torch.tensor([0.01])
    for result in (gmm.log_prob(x, sigma), gmm.score(x, sigma), gmm.denoise(x, sigma)):
        assert result.isfinite().all() and result.dtype == torch.float32


def test_images_keep_their_shape() -> None:
    gmm, x = mixture(dimensions=12), points(12)
    images = x.reshape(4, 3, 2, 2)
    for method in (gmm.denoise, gmm.score):
        assert torch.equal(method(images, SIGMA), method(x, SIGMA).reshape(4, 3, 2, 2))
    assert torch.equal(gmm.log_prob(images, SIGMA), gmm.log_prob(x, SIGMA))


def test_log_ratio() -> None:
    p, q = mixture(seed=0), mixture(seed=3)
    ratio = p.log_ratio(q, points(), SIGMA)
    torch.testing.assert_close(ratio.exp(), p.log_prob(points(), SIGMA).exp() / q.log_prob(points(), SIGMA).exp())
    assert (p.log_ratio(p, points(), SIGMA) == 0).all()


def test_samples_have_the_moments_of_the_mixture() -> None:
    gmm = mixture()
    x = gmm.sample(200_000, torch.Generator().manual_seed(0))
    mean = WEIGHTS @ gmm.means
    second = torch.einsum("k,kde->de", WEIGHTS, covariances(gmm) + gmm.means[:, :, None] * gmm.means[:, None])
    covariance = second - mean[:, None] * mean
    standard_error = (covariance.diagonal() / len(x)).sqrt()
    assert ((x.mean(0) - mean).abs() < 4 * standard_error).all()
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.02 * float(covariance.diagonal().max()))
    assert torch.equal(x, gmm.sample(200_000, torch.Generator().manual_seed(0)))


def test_singular_covariance_has_no_density_at_sigma_zero_only() -> None:
    one = torch.ones(1, dtype=torch.float64)
    gmm = GaussianMixture.isotropic(one, torch.zeros(1, 2, dtype=torch.float64), 0 * one)
    x, sigma = torch.tensor([[1.0, 2.0]], dtype=torch.float64), 2 * one
    assert gmm.denoise(x, sigma).tolist() == [[0, 0]]
    assert gmm.score(x, sigma).tolist() == [[-0.25, -0.5]]


def test_eigenvalues_that_round_below_zero_still_give_samples() -> None:
    direction = torch.linspace(1, 2, 6, dtype=torch.float64)
    rank_one = (direction[:, None] * direction)[None]
    assert torch.linalg.eigvalsh(rank_one).min() < 0
    gmm = GaussianMixture(torch.ones(1, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64), rank_one)
    x = gmm.sample(10, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x, x[:, :1] * direction, rtol=1e-6, atol=1e-6)


def test_to_float32() -> None:
    gmm = mixture()
    single = gmm.to(dtype=torch.float32).denoise(points().float(), SIGMA.float())
    torch.testing.assert_close(single, gmm.denoise(points(), SIGMA).float(), rtol=1e-4, atol=1e-4)
    assert gmm.means.dtype == torch.float64


def test_no_gradient_reaches_the_parameters() -> None:
    means = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    gmm = GaussianMixture.isotropic(WEIGHTS, means, torch.ones(3, dtype=torch.float64))
    assert not gmm.log_prob(points(1), SIGMA).requires_grad


def parameters(**changed: Tensor) -> dict[str, Tensor]:
    eye = torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    return {"weights": WEIGHTS, "means": torch.zeros(3, 2, dtype=torch.float64), "covariances": eye} | changed


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"weights": torch.tensor([0.5, 0.6, 0.2]).double()}, "sum to one"),
        ({"weights": torch.tensor([1.2, -0.4, 0.2]).double()}, "positive"),
        ({"weights": torch.tensor([0.5, 0.5]).double()}, "as many weights"),
        ({"weights": WEIGHTS.float()}, "one floating dtype"),
        ({"means": torch.zeros(3).double()}, r"means \[K, D\]"),
        ({"covariances": torch.ones(3, 2).double()}, r"covariances \[K, D, D\]"),
        ({"covariances": torch.tensor([[1.0, 0.5], [0.0, 1.0]]).double().expand(3, 2, 2)}, "symmetric"),
        ({"covariances": torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double().expand(3, 2, 2)}, "eigenvalue -1"),
        ({"covariances": torch.full((3, 2, 2), float("nan")).double()}, "finite"),
        ({"means": torch.full((3, 2), float("nan")).double()}, "finite"),
    ],
)
def test_bad_parameters_are_refused(changed: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**parameters(**changed))


def test_bad_calls_are_refused() -> None:
    gmm = GaussianMixture(**parameters())
    with pytest.raises(ValueError, match=r"2 values per sample.*\(4, 3\)"):
        gmm.log_prob(points(3), SIGMA)
    with pytest.raises(ValueError, match=r"sigma \[B\].*\(1,\)"):
        gmm.denoise(points(2), SIGMA[:1])
    with pytest.raises(ValueError, match="float32"):
        gmm.score(points(2).float(), SIGMA)
    with pytest.raises(ValueError, match="stds must be"):
        GaussianMixture.isotropic(WEIGHTS, torch.zeros(3, 2).double(), torch.tensor([1.0, -1.0, 1.0]).double())

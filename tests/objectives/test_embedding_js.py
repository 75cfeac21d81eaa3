"""The Jensen-Shannon term between embeddings."""

import math
from types import SimpleNamespace

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from onestep.build.image_conditions import check_ground_truth
from onestep.metrics.classifier import Classifier
from onestep.metrics.features import FeatureNetwork
from onestep.objectives.embedding_js import EmbeddingJensenShannon, jensen_shannon
from onestep.objectives.inversion import Consistency


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0, 100.0])
def test_the_value_is_that_of_scipy(scale: float) -> None:
    a, b = scale * normal(2, 5, 32)
    expected = [jensenshannon(p, q) ** 2 for p, q in zip(a.softmax(1), b.softmax(1), strict=True)]
    found = jensen_shannon(a, b)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(found, jensen_shannon(b, a + 7), rtol=1e-12, atol=1e-15)


def test_small_differences_keep_their_digits() -> None:
    """The second order is an eighth of the variance of the difference, of 1e-15 here, where scipy has no digit."""
    a, b = normal(2, 5, 32)
    p, difference = a.softmax(1), 1e-7 * b
    variance = (p * difference.square()).sum(1) - (p * difference).sum(1).square()
    torch.testing.assert_close(jensen_shannon(a, a + difference), variance / 8, rtol=1e-5, atol=0)


def test_it_is_bounded_and_zero_for_equal_embeddings_in_single_precision() -> None:
    a, b = normal(2, 5, 32).float()
    assert jensen_shannon(a, a).tolist() == [0.0] * 5
    assert (jensen_shannon(a, a + 1e-6 * b) >= 0).all()
    apart = torch.eye(2)[:1].mul(1e4).requires_grad_()
    value = jensen_shannon(apart, apart.flip(1).detach())
    assert value.item() == pytest.approx(math.log(2), rel=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), apart)
    assert gradient.isfinite().all()


def test_the_gradient_of_a_tiny_network() -> None:
    """Through the resizing too; one channel is repeated, and the ground truth gets no gradient."""
    torch.manual_seed(0)
    network = Classifier("tiny", [3, 4, 4], 2, 5, [4], [2]).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    term = EmbeddingJensenShannon(network, 1.0)
    term.check((1, 6, 6))
    x, x_real = normal(2, 2, 1, 6, 6, seed=1)
    x.requires_grad_()
    losses = term(x, x_real)
    assert (losses > 1e-3).all() and losses.shape == (2,)
    torch.autograd.gradcheck(lambda x: term(x, x_real), x)
    assert not term(x.detach(), x_real.requires_grad_()).requires_grad


class Rounded(FeatureNetwork):
    title = "network of integers"


@pytest.mark.parametrize(
    ("network", "got"), [(Rounded(), "network of integers"), (None, "no network"), (torch.nn.ReLU(), "ReLU")]
)
def test_networks_without_a_gradient(network: torch.nn.Module | None, got: str) -> None:
    with pytest.raises(ValueError, match=rf"^terms\.embedding_js\.network: got {got}, expected one whose features are"):
        EmbeddingJensenShannon(network, 1.0)


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (False, "terms.embedding_js.network: the grey classifier takes 1 channels, and the samples have 3: choose "),
        (True, "terms.embedding_js reads pixels in [-1, 1], and these networks take latents: leave it out of terms="),
    ],
)
def test_samples_that_do_not_fit(latent: bool, message: str) -> None:
    term = EmbeddingJensenShannon(Classifier("grey", [1, 8, 8], 2, 4, [4], [2]), 1.0)
    teacher = SimpleNamespace(image_shape=(3, 8, 8), denoises_latents=latent)
    with pytest.raises(ValueError) as caught:
        check_ground_truth({"embedding_js": term}, teacher, with_image=True)
    assert str(caught.value).startswith(message)
    # As a distance of another term too, whose networks are the distance's.
    consistency = Consistency(1.0, {"embedding_js": term})
    with pytest.raises(ValueError) as caught:
        check_ground_truth({"embedding_js": consistency}, teacher, with_image=True)
    assert str(caught.value).startswith(message)
    assert consistency.networks == {"distances.embedding_js.network": term.network}

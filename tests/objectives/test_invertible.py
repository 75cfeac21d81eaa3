"""The distance of details in the space of an invertible network."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from onestep.build.image_conditions import check_ground_truth
from onestep.haar import haar, inverse_haar
from onestep.models.invertible import InvertibleNetwork
from onestep.objectives.haar import HaarDetails
from onestep.objectives.invertible import InvertibleDetails
from tests.models.test_invertible import images, random_network


@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier"])
def test_a_new_network_scales_the_haar_details(distance: Any) -> None:
    """The distance is that of details in units of each band's root mean square."""
    x, x_real = images(4, 2, 8, 8).chunk(2)
    network = InvertibleNetwork(2, 4, 2).double().fit_scales(x_real)
    low, (details,) = haar(x_real, 1)
    scales = details.square().mean((0, 2, 3), keepdim=True).sqrt()
    scaled = [inverse_haar(low, haar(one, 1)[1][0] / scales) for one in (x, x_real)]
    expected = HaarDetails(distance, 0.2, 1, 0.01)(*scaled)
    torch.testing.assert_close(InvertibleDetails(network, distance, 0.2, 0.01)(x, x_real), expected)


def test_its_gradient() -> None:
    """One channel is repeated; the network and the ground truth get no gradient."""
    term = InvertibleDetails(random_network(3), "l2", 0.2, 0.01)
    x, x_real = images(4, 1, 4, 6).requires_grad_().chunk(2)
    losses = term(x, x_real)
    expected = (term.network(x.expand(-1, 3, -1, -1)) - term.network(x_real.expand(-1, 3, -1, -1))).square()
    torch.testing.assert_close(losses, expected.mean((1, 2, 3)))
    torch.autograd.gradcheck(lambda x: term(x, x_real.detach()), x.detach().requires_grad_())
    assert not term(x.detach(), x_real).requires_grad


@pytest.mark.parametrize(
    ("shape", "latent", "message"),
    [
        (
            (3, 8, 7),
            False,
            "terms.invertible: samples of 8x7 cannot be halved: use even sides, or leave ",
        ),
        (
            (4, 8, 8),
            False,
            "terms.invertible.network: it takes 3 channels, and the samples have 4: train ",
        ),
        ((3, 8, 8), True, "terms.invertible reads pixels in [-1, 1], and these networks take latents: leave it out"),
    ],
)
def test_samples_that_do_not_fit(shape: tuple[int, int, int], latent: bool, message: str) -> None:
    term = InvertibleDetails(InvertibleNetwork(3, 4, 1), "l2", 0.2, 0.01)
    with pytest.raises(ValueError) as caught:
        teacher = SimpleNamespace(image_shape=shape, denoises_latents=latent)
        check_ground_truth({"invertible": term}, teacher, with_image=True)
    assert str(caught.value).startswith(message)

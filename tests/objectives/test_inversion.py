"""SinSR's terms: the noise that a student reads from an image, and the image that it makes of it."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.models.base import DenoiserNetwork
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator
from onestep.noise import expand_like
from onestep.objectives.haar import HaarDetails
from onestep.objectives.inversion import Consistency, Inverse, latents_of
from onestep.objectives.reconstruction import Reconstruction
from onestep.objectives.regression import regression_loss
from onestep.objectives.terms import TeacherPair, TermInputs

SQUARED = {"reconstruction": Reconstruction("l2", 1.0, 1e-3)}


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    """Noise levels too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(student: Any, x_real: Tensor, y: Tensor, latents: Tensor, x_teacher: Tensor) -> TermInputs:
    condition = {"image": y}
    return TermInputs(student, x_real, x_real, condition, TeacherPair(latents, condition, x_teacher), None, {}, None)


@pytest.fixture
def student() -> Generator:
    """A tiny network in float64 with random weights, which takes y as residual shifting does."""
    options = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    network = EDMDenoiser((1, 8, 8), sigma_data=0.4, sigma_min=0.02, options=options, image_condition="residual")
    for number, parameter in enumerate(network.parameters()):
        parameter.data = 0.3 * normal(*parameter.shape, seed=number)
    return Generator(network.eval(), 1.5, start="image")


def raw(network: Any, x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """The raw network's output for an input of ``x - y``, with EDM's coefficients written out."""
    embedding = network.model.embed(torch.full((len(x),), math.log(sigma) / 4), None, None)
    inputs = torch.cat([(x - y) / math.hypot(sigma, 0.4), y], 1)
    output: Tensor = network.model.decode(network.model.encode(inputs, embedding, None), embedding)
    return output


def test_the_terms_of_a_network_by_hand(student: Generator) -> None:
    x, y, z, x_teacher = normal(4, 3, 1, 8, 8).unbind()
    inputs, network, s = inputs_of(student, x, y, z, x_teacher), student.denoiser, 0.02
    scale = math.hypot(s, 0.4)

    def read(image: Tensor) -> Tensor:
        return s / scale**2 * (image - y) - 0.4 / scale * raw(network, image, y, s)

    found = read(x_teacher)
    assert found.std() > 0.1
    torch.testing.assert_close(Inverse(1.0).losses(inputs), (found - z).square().mean((1, 2, 3)))
    sigma, scale_init = 1.5, math.hypot(1.5, 0.4)
    x_sigma = y + sigma * read(x)
    made = y + (0.4 / scale_init) ** 2 * (x_sigma - y) + sigma * 0.4 / scale_init * raw(network, x_sigma, y, sigma)
    haar = HaarDetails("l1", 0.2, 1, 1e-3)
    expected = (made - x).square().mean((1, 2, 3)) + 0.2 * haar(made, x)
    losses = Consistency(1.0, {**SQUARED, "haar": haar}).losses(inputs)
    torch.testing.assert_close(losses, expected)


def test_the_noise_is_minus_the_raw_output_in_the_limit(student: Generator) -> None:
    x, y = normal(2, 3, 1, 8, 8).unbind()
    student.denoiser.sigma_min = 1e-4
    expected = -raw(student.denoiser, x, y, 1e-4)
    torch.testing.assert_close(latents_of(student.denoiser, x, {"image": y}), expected, rtol=0, atol=3e-3)


class Linear(DenoiserNetwork):
    """At its lowest level ``z = (x - a y) / b``, above it ``x = c y + d x_sigma``, by four numbers."""

    image_shape, sigma_min, sigma_max, condition_keys = (1, 4, 4), 0.01, 10.0, ("image",)

    def __init__(self, a: float, b: float, c: float, d: float) -> None:
        super().__init__()
        self.reading = nn.Parameter(torch.tensor([a, b]))
        self.sampling = nn.Parameter(torch.tensor([c, d]))

    def denoise(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        if sigma[0] > 0.5:
            return self.sampling[0] * condition["image"] + self.sampling[1] * x_sigma
        a, b = self.reading
        return x_sigma - expand_like(sigma, x_sigma) * (x_sigma - a * condition["image"]) / b


def test_the_three_terms_of_a_linear_student() -> None:
    """They are 0 at the probability flow of x ~ N(m y, v), from y + sigma z to x, and its inverse."""
    m, v, sigma = 0.6, 0.09, 2.0
    k = math.sqrt(v / (v + sigma**2))
    a, b = m + k * (1 - m), k * sigma  # x = a y + b z
    y, z, other = normal(3, 5, 1, 4, 4).unbind()
    x_teacher, x_real = a * y + b * z, m * y + math.sqrt(v) * other

    def losses(*numbers: float) -> tuple[list[Tensor], Linear]:
        network = Linear(*numbers)
        student = Generator(network, sigma, start="image")
        inputs = inputs_of(student, x_real, y, z, x_teacher)
        regression = regression_loss(student.simulate([z], {"image": y}), x_teacher)
        return [regression, Inverse(1.0).losses(inputs), Consistency(1.0, SQUARED).losses(inputs)], network

    exact, _ = losses(a, b, a - b / sigma, b / sigma)
    for loss in exact:
        torch.testing.assert_close(loss, torch.zeros(5), rtol=0, atol=1e-12)
    # Away from it each is its closed form.
    (regression, inverse, consistency), network = losses(a + 0.1, 2 * b, a - b / sigma + 0.2, b / sigma)
    torch.testing.assert_close(regression, (0.2 * y).square().mean((1, 2, 3)))
    torch.testing.assert_close(inverse, ((b * z - 0.1 * y) / (2 * b) - z).square().mean((1, 2, 3)))
    made = (a + 0.2) * y + (x_real - (a + 0.1) * y) / 2
    torch.testing.assert_close(consistency, (made - x_real).square().mean((1, 2, 3)))
    # Of the second direction, only the inverse term has a gradient.
    consistency.sum().backward()
    assert network.reading.grad is None and network.sampling.grad is not None
    assert bool((network.sampling.grad.abs() > 0.01).all())
    network.zero_grad()
    inverse.sum().backward()
    assert network.sampling.grad is None and network.reading.grad is not None
    assert bool((network.reading.grad.abs() > 0.01).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "image_alone"}, "generator.start=image_alone: noise has no effect on this generator"),
        ({"later_sigmas": [0.5]}, r"generator.later_sigmas=\[0.5\]: a sample of several steps is no function of one"),
    ],
)
def test_students_of_which_no_noise_is_read(settings: Any, message: str) -> None:
    for term in (Inverse(1.0), Consistency(1.0, SQUARED)):
        term.check_student(Generator(Linear(1.0, 1.0, 1.0, 1.0), 2.0), None)  # start=noise is a map of noise too
        with pytest.raises(ValueError, match=message):
            term.check_student(Generator(Linear(1.0, 1.0, 1.0, 1.0), 2.0, **settings), None)
        with pytest.raises(ValueError, match="it reads the noise of an image from the network of a Generator, and a I"):
            term.check_student(nn.Identity(), None)


def test_a_consistency_of_nothing() -> None:
    with pytest.raises(ValueError, match="distances={}: expected one at least, such as reconstruction"):
        Consistency(1.0, {})
    with pytest.raises(ValueError, match="terms.haar.levels=3: samples of 8x12 cannot be halved so often"):
        Consistency(1.0, {"haar": HaarDetails("l1", 1.0, 3, 1e-3)}).check((3, 8, 12))

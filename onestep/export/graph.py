"""A generator as one graph: noise and condition in, images out, as programs without this package run it."""

from collections.abc import Sequence
from itertools import islice

from torch import Tensor, nn

from onestep.evaluation.generate import SampleSpace
from onestep.models.diffusers.autoencoder import Autoencoder
from onestep.models.generator import Generator

OUTPUT = "images"


class GeneratorGraph(nn.Module):
    """All steps of a ``generator``, with the noise that they read as inputs, and the decoder of latents behind them.

    Args:
        generator: with weights in float32, on the CPU.
        space: the inputs of seeds, as ``onestep sample`` has them.
        autoencoder: of the generator's latents; None for a generator of images.

    Attributes:
        noise_names: the inputs of noise [B, C, H, W] ~ N(0, I): ``noise``, and ``noise_2`` and so on of the later steps
            if they are stochastic.
        condition_names: the inputs of the condition [B, ...].
    """

    def __init__(self, generator: Generator, space: SampleSpace, autoencoder: Autoencoder | None = None) -> None:
        super().__init__()
        self.generator = generator.eval().requires_grad_(False)
        self.space, self.autoencoder = space, autoencoder
        later = range(2, generator.noises + 1)
        self.noise_names = ["noise", *(f"noise_{step}" for step in later)]
        self.condition_names = list(space.inputs([0])[1])

    def forward(self, noise: Tensor, *others: Tensor) -> Tensor:
        """Images [B, C, H, W] in about [-1, 1], of the inputs in the order of :meth:`inputs`."""
        later = len(self.noise_names) - 1
        condition = dict(zip(self.condition_names, others[later:], strict=True))
        samples = self.generator(noise, condition, iter(others[:later]))
        return samples if self.autoencoder is None else self.autoencoder.decode(samples)

    def inputs(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """The inputs [N, ...] of ``seeds`` by name; each seed's image is that of ``onestep sample``."""
        latents, condition = self.space.inputs(seeds)
        noises = [latents, *islice(self.space.noise(seeds), len(self.noise_names) - 1)]
        named = dict(zip(self.noise_names, noises, strict=True))
        return {name: tensor.contiguous() for name, tensor in (named | condition).items()}

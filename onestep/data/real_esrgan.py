"""Real-ESRGAN's random degradation of second order (Wang et al. 2021, arXiv 2107.10833)."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from onestep.data import kernels
from onestep.data.degradation import Degradation
from onestep.data.distortions import (
    Draws,
    Interval,
    Qualities,
    Six,
    Sizes,
    Three,
    blurred,
    compressed,
    gaussian_noise,
    poisson_noise,
    resized,
    sinc_kernel,
)
from onestep.ranges import Fraction, checked


@checked
@dataclass(eq=False)
class Stage:
    """One stage of Real-ESRGAN's model: blur, resizing, noise.

    Args:
        blur: probability of the blur.
        sizes: sides of its kernel.
        sinc: probability of a sinc filter as the kernel.
        kinds: frequencies of the other kernels: a Gaussian, a generalised Gaussian and a plateau, of which the first
            two numbers, the next two and the last two are those of the isotropic and the anisotropic one.
        deviations: standard deviations of a kernel in pixels.
        generalised, plateau: exponents of these kernels.
        resize: frequencies of enlarging, reducing and keeping the size.
        factors: the least and the greatest factor of the size.
        gaussian: probability of Gaussian noise; Poisson noise otherwise.
        noise: standard deviations of Gaussian noise in grey levels.
        poisson: scales of Poisson noise.
        grey: probability of noise that is equal in all channels.
    """

    _: KW_ONLY
    blur: Fraction
    sizes: Sizes
    sinc: Fraction
    kinds: Six
    deviations: Interval
    generalised: Interval
    plateau: Interval
    resize: Three
    factors: Interval
    gaussian: Fraction
    noise: Interval
    poisson: Interval
    grey: Fraction

    def __call__(self, levels: Tensor, size: tuple[int, int], draws: Draws) -> Tensor:
        """Grey levels [1, C, h, w] after the stage; ``size`` (h, w) is what the factors multiply."""
        if draws.happens(self.blur):
            levels = blurred(levels, self._kernel(draws))
        low, high = self.factors
        enlarged, reduced = (max(low, 1.0), max(high, 1.0)), (min(low, 1.0), min(high, 1.0))
        factor = draws.uniform(*(enlarged, reduced, (1.0, 1.0))[draws.choice(self.resize)])
        levels = resized(levels, [int(side * factor) for side in size], draws)
        return self._noised(levels, draws).clamp(0, 255)

    def _kernel(self, draws: Draws) -> Tensor:
        if draws.happens(self.sinc):
            return sinc_kernel(draws, self.sizes)
        kind, anisotropic = divmod(draws.choice(self.kinds), 2)
        size, first = draws.odd(self.sizes), draws.uniform(*self.deviations)
        deviations, angle = (first, first), 0.0
        if anisotropic:
            deviations, angle = (first, draws.uniform(*self.deviations)), draws.uniform(-math.pi, math.pi)
        squares = kernels.squared_distances(size, deviations, angle)
        if kind == 2:
            return kernels.plateau(squares, _exponent(self.plateau, draws))
        return kernels.gaussian(squares, _exponent(self.generalised, draws) if kind == 1 else 1.0)

    def _noised(self, levels: Tensor, draws: Draws) -> Tensor:
        gaussian, grey = draws.happens(self.gaussian), draws.happens(self.grey)
        if gaussian:
            return levels + gaussian_noise(levels, draws.uniform(*self.noise), grey, draws)
        return levels + poisson_noise(levels, grey, draws) * draws.uniform(*self.poisson)


@checked
@dataclass(eq=False)
class RealESRGAN(Degradation):
    """Real-ESRGAN's model (Wang et al. 2021, arXiv 2107.10833): two stages, each with JPEG, and a last sinc filter.

    Args:
        factor: see :class:`Degradation`.
        first, second: the stages. The factors of the second multiply the final size.
        second_probability: of the second stage and the last filter: 1, and 0.5 in ResShift.
        quality: of both JPEGs.
        last_sinc: probability of the last filter.
    """

    _: KW_ONLY
    first: Stage
    second: Stage
    second_probability: Fraction
    quality: Qualities
    last_sinc: Fraction

    def degrade(self, levels: Tensor, size: tuple[int, int], rng: torch.Generator) -> Tensor:
        draws = Draws(rng)
        levels = self.first(levels, (levels.shape[2], levels.shape[3]), draws)
        levels = compressed(levels, self.quality, draws)
        if draws.happens(self.second_probability):
            levels = self.second(levels, size, draws)
        if draws.happens(0.5):
            return compressed(self._last(levels, size, draws), self.quality, draws)
        return self._last(compressed(levels, self.quality, draws), size, draws)

    def _last(self, levels: Tensor, size: tuple[int, int], draws: Draws) -> Tensor:
        levels = resized(levels, size, draws)
        if draws.happens(self.last_sinc):
            levels = blurred(levels, sinc_kernel(draws, self.second.sizes, math.pi / 3))
        return levels


def _exponent(ends: Sequence[float], draws: Draws) -> float:
    """One of the exponents from the first to the second of ``ends``; those on both sides of 1 are equally frequent."""
    low, high = ends
    if draws.happens(0.5):
        return draws.uniform(min(low, 1.0), min(high, 1.0))
    return draws.uniform(max(low, 1.0), max(high, 1.0))

"""BSRGAN's random degradation, in random order (Zhang et al. 2021, arXiv 2103.14006)."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.data import kernels
from onestep.data.degradation import Degradation, bicubic
from onestep.data.distortions import (
    Draws,
    Interval,
    Qualities,
    Sizes,
    Two,
    blurred,
    compressed,
    gaussian_noise,
    resized,
)
from onestep.ranges import Fraction, checked

_LEAST = 1e-2  # deviation of a kernel in pixels: a narrower one is a point


@checked
@dataclass(eq=False)
class BSRGAN(Degradation):
    """BSRGAN's model: two blurs, two reductions, noise and JPEG in random order, and a last JPEG.

    The second reduction, to the final size, comes after the first. Camera noise by a model of the sensor's processing
    is left out: its published code needs measured camera profiles.

    Args:
        factor: see :class:`Degradation`.
        halved_first: probability of a first reduction by 2, for a factor of 4 or more.
        sizes: sides of the kernels of a blur.
        anisotropic: probability of an anisotropic blur.
        variance: the greatest variance of an anisotropic blur, in pixels^2: the first number plus the second times the
            factor.
        deviation: the greatest standard deviation of an isotropic blur, in pixels, in the same way.
        interpolated: probability that the first reduction is by area, bilinear or bicubic, by up to twice the factor.
            Otherwise every factor-th pixel is taken after a blur.
        noise: standard deviations of the noise in grey levels.
        grey, coloured: probabilities of noise that is equal in all channels, and of noise that is independent in each.
            Otherwise its covariance between the channels is random.
        jpeg: probability of the first JPEG.
        quality: of both.
    """

    _: KW_ONLY
    halved_first: Fraction
    sizes: Sizes
    anisotropic: Fraction
    variance: Two
    deviation: Two
    interpolated: Fraction
    noise: Interval
    grey: Fraction
    coloured: Fraction
    jpeg: Fraction
    quality: Qualities

    def degrade(self, levels: Tensor, size: tuple[int, int], rng: torch.Generator) -> Tensor:
        draws, factor = Draws(rng), self.factor
        if factor >= 4 and draws.happens(self.halved_first):
            half = [side // 2 for side in levels.shape[2:]]
            smooth = draws.happens(0.5)
            levels = bicubic(levels, (half[0], half[1])).clamp(0, 255) if smooth else resized(levels, half, draws)
            factor /= 2
        # The places of the two reductions among all steps, in this order.
        steps: list[Callable[[Tensor], Tensor]] = [
            lambda levels: self._blurred(levels, factor, draws),
            lambda levels: self._blurred(levels, factor, draws),
            lambda levels: self._noised(levels, draws),
            lambda levels: compressed(levels, self.quality, draws) if draws.happens(self.jpeg) else levels,
            lambda levels: self._reduced(levels, factor, draws),
            lambda levels: resized(levels, size, draws),
        ]
        order = draws.order(len(steps))
        first, last = sorted(order.index(step) for step in (4, 5))
        order[first], order[last] = 4, 5
        for step in order:
            levels = steps[step](levels)
        return compressed(levels, self.quality, draws)

    def _blurred(self, levels: Tensor, factor: float, draws: Draws) -> Tensor:
        size = draws.odd(self.sizes)
        if draws.happens(self.anisotropic):
            greatest = self.variance[0] + self.variance[1] * factor
            first, second = (max(math.sqrt(draws.uniform(0, greatest)), _LEAST) for _ in range(2))
            angle = draws.uniform(0, math.pi)
        else:
            first = second = max(draws.uniform(0, self.deviation[0] + self.deviation[1] * factor), _LEAST)
            angle = 0.0
        return blurred(levels, kernels.gaussian(kernels.squared_distances(size, (first, second), angle)))

    def _reduced(self, levels: Tensor, factor: float, draws: Draws) -> Tensor:
        height, width = levels.shape[2:]
        if draws.happens(self.interpolated):
            by = draws.uniform(1, 2 * factor)
            return resized(levels, [int(height / by), int(width / by)], draws)
        deviation = draws.uniform(0.1, 0.6 * factor)
        # The middle of the pixels that one taken pixel stands for.
        squares = kernels.squared_distances(25, (deviation, deviation), shift=(factor - 1) / 2)
        levels = blurred(levels, kernels.gaussian(squares))
        return F.interpolate(levels, (max(1, int(height / factor)), max(1, int(width / factor))), mode="nearest")

    def _noised(self, levels: Tensor, draws: Draws) -> Tensor:
        deviation, kind = draws.uniform(*self.noise), draws.uniform()
        channels = levels.shape[1]
        if kind < self.grey + self.coloured or channels == 1:
            noise = gaussian_noise(levels, deviation, kind < self.grey, draws)
        else:
            # Of the covariance L^2 |U' diag(d) U|, L the greatest deviation; published as the absolute values.
            turn = torch.linalg.qr(draws.normal(channels, channels)).Q
            spread = torch.tensor([draws.uniform() for _ in range(channels)], dtype=torch.float64)
            covariance = (turn.T @ spread.diag() @ turn).abs()
            values, vectors = torch.linalg.eigh(covariance)
            root = vectors @ values.clamp(min=0).sqrt().diag()
            noise = torch.einsum("kc,bchw->bkhw", root, draws.normal(*levels.shape)) * self.noise[1]
        return (levels + noise).clamp(0, 255)

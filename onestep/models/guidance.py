"""How classifier-free guidance combines two x0-predictions: in an interval of noise levels, with a rescaled norm."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onestep.noise import expand_like
from onestep.ranges import Fraction, NonNegative, checked


@checked
@dataclass(frozen=True)
class GuidanceRule:
    """``unconditional + guidance * (conditional - unconditional)``, at some noise levels, and rescaled.

    Args:
        rescale: phi of Lin et al. 2023 (arXiv 2305.08891, eq. 15 and 16): the part, in [0, 1], by which the standard
            deviation of a guided sample is brought to that of the conditional one. Here both are x0-predictions, so
            that phi means the same for every prediction type.
        interval: levels (low, high) in data units, of Kynkaanniemi et al. 2024 (arXiv 2404.07724): there is no guidance
            unless ``low < sigma <= high``; None for guidance at all levels.

    Raises:
        ValueError: for a number out of its range, or an interval without levels.
    """

    rescale: Fraction
    interval: tuple[NonNegative, NonNegative] | None

    def __post_init__(self) -> None:
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise ValueError(
                f"guidance_interval={list(self.interval)}: expected two noise levels in data units, the lower one first"
            )

    def check(self, guidance: float, network_evaluations: int) -> None:
        """Check that there are two predictions to combine, so ``network_evaluations`` of 2.

        Raises:
            ValueError: if there are not, and the rule asks for more than plain guidance.
        """
        if self != PLAIN and network_evaluations == 1:
            reason = "there is no guidance" if guidance == 1 else "guidance is an input of the network"
            raise ValueError(
                f"guidance={guidance}, guidance_rescale={self.rescale}, guidance_interval={self.interval}: {reason}, "
                "so there is no unconditional prediction to combine: set guidance_rescale=0 and guidance_interval=null"
                + (", or a guidance other than 1" if guidance == 1 else "")
            )

    def __call__(self, conditional: Tensor, unconditional: Tensor, sigma: Tensor, guidance: float) -> Tensor:
        """The guided x0-prediction [B, ...] of two predictions [B, ...] at ``sigma`` [B]."""
        scale: Tensor | float = guidance
        if self.interval is not None:
            low, high = self.interval
            scales = torch.where((low < sigma) & (sigma <= high), guidance, 1.0)
            scale = expand_like(scales, conditional).to(conditional.dtype)
        guided = torch.lerp(unconditional, conditional, scale)
        if not self.rescale:
            return guided
        ratio = _std(conditional) / _std(guided)
        return guided * (1 + self.rescale * (ratio - 1))


def _std(x: Tensor) -> Tensor:
    """The standard deviation of each sample [B, ...] over its dimensions, in as many dimensions; never 0."""
    std = x.flatten(1).std(1, correction=0).clamp(min=torch.finfo(x.dtype).tiny)
    return expand_like(std, x)


#: Guidance at all levels, as it is.
PLAIN = GuidanceRule(rescale=0.0, interval=None)


@contextmanager
def unguided(network: Any) -> Iterator[None]:
    """Context in which a denoiser predicts without guidance, also one of one's own that has no such attributes."""
    plain = {"guidance": 1.0, "guidance_rule": PLAIN}
    kept = {name: getattr(network, name) for name in plain if hasattr(network, name)}
    for name in kept:
        setattr(network, name, plain[name])
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(network, name, value)

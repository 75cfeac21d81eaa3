"""The four preconditionings of Karras et al. 2022 (arXiv 2206.00364, table 1), for ``x_sigma = x0 + sigma * noise``.

Each computes the coefficients of ``D(x; sigma) = c_skip x + c_out F(c_in x, c_noise)`` for a raw network F. They keep
the dtype of sigma, as EDM does: the rounding, such as that of ``log(1 + sigma^2)``, is part of the training.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onestep.ranges import Positive, PositiveFraction, Steps


class Coefficients(NamedTuple):
    """The coefficients [B] at noise levels [B]."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Preconditioning(nn.Module, ABC):
    """Coefficients and training weight as functions of sigma."""

    #: Output channels of the raw network per image channel; the first ones are the prediction.
    outputs_per_channel = 1

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The coefficients at ``sigma`` [B], in data units."""

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """The weight [B] of the squared x0-error in the training loss (table 1, "loss weighting")."""
        return 1 / sigma**2

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The training levels nearest to ``sigma`` (any shape)."""
        return sigma


class EDMPreconditioning(Preconditioning):
    """Column "EDM". ``sigma_data`` is the standard deviation of the data, in data units."""

    def __init__(self, sigma_data: float) -> None:
        super().__init__()
        self.sigma_data = sigma_data

    def coefficients(self, sigma: Tensor) -> Coefficients:
        scale = (sigma**2 + self.sigma_data**2).sqrt()
        return Coefficients((self.sigma_data / scale) ** 2, sigma * self.sigma_data / scale, 1 / scale, sigma.log() / 4)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class VPPreconditioning(Preconditioning):
    """Column "VP" (DDPM's noise in continuous time, arXiv 2011.13456): the network predicts the noise.

    Args:
        beta_d, beta_min: of the schedule ``sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)``, t in [0, 1].
        steps: number of training time steps (M).
    """

    def __init__(self, beta_d: Positive = 19.9, beta_min: Positive = 0.1, steps: Steps = 1000) -> None:
        super().__init__()
        self.beta_d, self.beta_min, self.steps = beta_d, beta_min, steps

    def coefficients(self, sigma: Tensor) -> Coefficients:
        log_variance = (1 + sigma**2).log()
        time = ((self.beta_min**2 + 2 * self.beta_d * log_variance).sqrt() - self.beta_min) / self.beta_d
        return Coefficients(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), (self.steps - 1) * time)


class VEPreconditioning(Preconditioning):
    """Column "VE" (SMLD's noise in continuous time, arXiv 2011.13456): the network predicts the negative noise."""

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return Coefficients(torch.ones_like(sigma), sigma, torch.ones_like(sigma), (0.5 * sigma).log())


class IDDPMPreconditioning(Preconditioning):
    """Column "iDDPM" (Nichol and Dhariwal 2021, arXiv 2102.09672): DDPM at ``steps`` noise levels of a cosine schedule.

    The network predicts the noise and, in as many further channels, a variance, which is not used.

    Args:
        c_1: least ratio of successive signal levels (C_1).
        c_2: offset of the schedule (C_2).
        steps: number of training time steps (M).
    """

    outputs_per_channel = 2
    u: Tensor

    def __init__(self, c_1: PositiveFraction = 0.001, c_2: Positive = 0.008, steps: Steps = 1000) -> None:
        super().__init__()
        self.steps = steps
        alpha_bar = [math.sin(0.5 * math.pi * j / steps / (c_2 + 1)) ** 2 for j in range(steps + 1)]
        levels = [0.0]  # from u_M = 0 to u_0
        for j in range(steps, 0, -1):
            levels.append(math.sqrt((levels[-1] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], c_1) - 1))
        #: Noise levels [steps + 1], descending to 0.
        self.register_buffer("u", torch.tensor(levels[::-1]))

    def _nearest(self, sigma: Tensor) -> Tensor:
        return (sigma.to(self.u)[..., None] - self.u).abs().argmin(-1)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_noise = (self.steps - 1 - self._nearest(sigma)).to(sigma)
        return Coefficients(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), c_noise)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.u[self._nearest(sigma)].to(sigma)


PRECONDITIONINGS: dict[str, Any] = {
    "edm": EDMPreconditioning,
    "vp": VPPreconditioning,
    "ve": VEPreconditioning,
    "iddpm": IDDPMPreconditioning,
}


def make_preconditioning(name: str, sigma_data: float, options: dict[str, Any]) -> Preconditioning:
    """The preconditioning ``name`` with its ``options``; only "edm" uses ``sigma_data``."""
    return PRECONDITIONINGS[name](**options, **({"sigma_data": sigma_data} if name == "edm" else {}))

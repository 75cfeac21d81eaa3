"""The noise schedules of diffusers' schedulers, as a preconditioning of their networks in the package's convention.

The network's input is ``c_in * x_sigma`` at a timestep, and ``c_skip * x_sigma + c_out * output`` predicts x0:

============== ======================== ================= ======================
family         c_in                     c_skip            c_out
============== ======================== ================= ======================
epsilon        1 / sqrt(1 + sigma^2)    1                 -sigma
v_prediction   1 / sqrt(1 + sigma^2)    1 / (1 + sigma^2) -sigma/sqrt(1+sigma^2)
sample         1 / sqrt(1 + sigma^2)    0                 1
flow           1 / (1 + sigma)          1 / (1 + sigma)   -sigma / (1 + sigma)
EDM            1/sqrt(sigma^2 + s^2)    s^2 c_in^2        sigma s c_in
============== ======================== ================= ======================

They follow from ``x_t = alpha (x0 + sigma noise)`` with ``alpha = 1/sqrt(1 + sigma^2)`` and
``v = alpha noise - alpha sigma x0`` (Salimans & Ho 2022, arXiv 2202.00512), and for flow matching from
``x_t = (1 - t) x0 + t noise`` with ``t = sigma / (1 + sigma)`` and ``v = noise - x0`` (Esser et al. 2024, arXiv
2403.03206). EDM's are those of Karras et al. 2022 (arXiv 2206.00364, table 1) with s = sigma_data; c_out of diffusers'
"v_prediction" has the other sign. The squared error of the output is that of x0 divided by ``c_out^2``, the training
weight of the network.
The clipping or thresholding of x0 in a scheduler's steps is not part of the preconditioning.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from onestep.precision import double
from onestep.reading import one_line

_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_TERMINAL_ALPHAS_CUMPROD = 2.0**-24  # in place of 0, where sigma would be infinite; as in diffusers' Euler scheduler
_EDM_SIGNS = {"epsilon": 1.0, "v_prediction": -1.0}  # of c_out
_FLOW_SIGMA_MAX = 2.0**30
_MAX_TIMESTEPS = 100_000  # the published schedulers have 1,000


class Scalings(NamedTuple):
    """The preconditioning at noise levels [B], each [B]."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor


class NoiseSchedule(ABC):
    """The noise levels of a network, in data units, and their timesteps and preconditioning."""

    sigma_min: float
    sigma_max: float

    @abstractmethod
    def timestep(self, sigma: Tensor) -> Tensor:
        """The network's timestep [B], float32, for ``sigma`` [B]."""

    @abstractmethod
    def scalings(self, sigma: Tensor) -> Scalings:
        """The preconditioning [B] at ``sigma`` [B]."""

    def init_noise_sigma(self, sigma: float) -> float:
        """The standard deviation of noise with which diffusers' pipelines start at ``sigma``: the input's is then 1."""
        return 1 / self.scalings(torch.tensor([sigma], dtype=torch.float64)).c_in.item()

    @abstractmethod
    def sampling_sigmas(self, steps: int, tokens: int, equal_spacing: bool, shift: float | None = None) -> list[float]:
        """The noise levels of diffusers' Euler scheduler with ``steps`` steps, including the last, 0.

        Args:
            steps: number of steps.
            tokens: number of an image's tokens in a transformer, for a dynamic shift.
            equal_spacing: True if the pipeline spaces t equally; False for the scheduler's spacing.
            shift: a dynamic shift of the pipeline's own; None for one linear in the tokens.
        """


class VariancePreservingSchedule(NoiseSchedule):
    """``x_t = alpha_t (x0 + sigma_t noise)`` at integer timesteps; log sigma is linear between them.

    This is the interpolation of k-diffusion and diffusers' Euler scheduler. ``sigma_min`` and ``sigma_max`` are the
    levels of the first and the last timestep.

    Args:
        scheduler: a scheduler of diffusers with ``alphas_cumprod``, the squares of alpha_t [T], and a
            ``prediction_type`` of "epsilon", "v_prediction" or "sample".

    Raises:
        ValueError: for another prediction type, or "epsilon" if the last timestep has no signal.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, prediction_type = scheduler, scheduler.config.prediction_type
        if prediction_type not in _PREDICTIONS:
            raise ValueError(f"prediction_type={prediction_type!r}: expected one of {', '.join(_PREDICTIONS)}")
        if prediction_type == "epsilon" and scheduler.config.get("rescale_betas_zero_snr"):
            raise ValueError(
                "prediction_type='epsilon' with rescale_betas_zero_snr: the last timestep has no signal, so predicted "
                "noise does not determine x0; expected prediction_type='v_prediction' or 'sample'"
            )
        kept = scheduler.alphas_cumprod.clone()
        if scheduler.config.get("rescale_betas_zero_snr"):
            kept[-1] = min(_TERMINAL_ALPHAS_CUMPROD, kept[-2].item() / 2)  # sigma increases up to the end
        # Rounded to float32 like sigma, so that a level of the table maps to its integer timestep exactly.
        self.log_sigmas = ((1 - kept) / kept).sqrt().double().log()
        self.prediction_type = prediction_type
        self.sigma_min, self.sigma_max = (self.log_sigmas[end].exp().float().item() for end in (0, -1))

    @property
    def sigmas(self) -> Tensor:
        """The noise levels [T] of the timesteps 0, 1, ..., float32."""
        return self.log_sigmas.exp().float()

    def timestep(self, sigma: Tensor) -> Tensor:
        log_sigma = double(sigma.float()).log()
        if self.log_sigmas.device != log_sigma.device:  # once, because a copy blocks the device
            self.log_sigmas = self.log_sigmas.to(log_sigma.device)
        table = self.log_sigmas
        log_sigma = log_sigma.clamp(table[0], table[-1])
        above = torch.searchsorted(table, log_sigma).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        return (above - 1 + (log_sigma - low) / (high - low)).float().to(sigma.device)

    def sampling_sigmas(self, steps: int, tokens: int, equal_spacing: bool, shift: float | None = None) -> list[float]:
        import diffusers

        euler = diffusers.EulerDiscreteScheduler.from_config(self.scheduler.config)
        euler.set_timesteps(steps)
        return euler.sigmas.tolist()

    def scalings(self, sigma: Tensor) -> Scalings:
        alpha = (1 + sigma**2).rsqrt()
        match self.prediction_type:
            case "epsilon":
                return Scalings(alpha, torch.ones_like(sigma), -sigma)
            case "v_prediction":
                return Scalings(alpha, alpha**2, -sigma * alpha)
            case _:
                return Scalings(alpha, torch.zeros_like(sigma), torch.ones_like(sigma))


class FlowSchedule(NoiseSchedule):
    """``x_t = (1 - t) (x0 + sigma noise)`` with ``sigma = t / (1 - t)``, and ``timestep = t * num_train_timesteps``.

    A scheduler's shift changes its steps in t, but not the network's input at t. The noise levels range from
    ``t = 1 / num_train_timesteps`` to ``sigma = 2^30``, which is ``t = 1`` in float32: flow-matching samplers start
    at ``t = 1``, where sigma is infinite.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.num_train_timesteps = scheduler, scheduler.config.num_train_timesteps
        self.sigma_min, self.sigma_max = 1 / (self.num_train_timesteps - 1), _FLOW_SIGMA_MAX

    def timestep(self, sigma: Tensor) -> Tensor:
        return (sigma / (1 + sigma)).float() * self.num_train_timesteps

    def sampling_sigmas(self, steps: int, tokens: int, equal_spacing: bool, shift: float | None = None) -> list[float]:
        import diffusers

        shifts = {"shift": self.scheduler.config["flow_shift"]} if "flow_shift" in self.scheduler.config else {}
        euler: Any = diffusers.FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config, **shifts)
        config = euler.config
        if config.use_dynamic_shifting and shift is None:  # linear in the tokens, as in Flux's and SD3's pipelines
            slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
            shift = config.base_shift + slope * (tokens - config.base_image_seq_len)
        equal = np.linspace(1, 1 / steps, steps) if equal_spacing else None
        euler.set_timesteps(steps, sigmas=equal, mu=shift)
        t = euler.sigmas.double()
        return (t / (1 - t)).clamp(max=self.sigma_max).tolist()

    def scalings(self, sigma: Tensor) -> Scalings:
        remaining = 1 / (1 + sigma)
        return Scalings(remaining, remaining, -sigma * remaining)


class EDMSchedule(NoiseSchedule):
    """EDM's preconditioning with the ``sigma_data`` of a scheduler, as Playground 2.5 has it; any sigma is a level.

    Raises:
        ValueError: for another prediction type, or numbers that are not positive and increasing.
    """

    def __init__(self, scheduler: Any) -> None:
        config = scheduler.config
        self.scheduler, self.sigma_data = scheduler, config.sigma_data
        self.sigma_min, self.sigma_max = config.sigma_min, config.sigma_max
        if config.prediction_type not in _EDM_SIGNS:
            raise ValueError(
                f"prediction_type={config.prediction_type!r}: EDM's schedulers have {' or '.join(_EDM_SIGNS)}"
            )
        self.sign = _EDM_SIGNS[config.prediction_type]
        if not (0 < self.sigma_min < self.sigma_max < math.inf and 0 < self.sigma_data < math.inf):
            raise ValueError(
                f"an EDM scheduler with sigma_min={self.sigma_min}, sigma_max={self.sigma_max}, "
                f"sigma_data={self.sigma_data}: expected positive numbers, the first below the second"
            )

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma.float().log() / 4

    def init_noise_sigma(self, sigma: float) -> float:
        return math.hypot(sigma, 1.0)  # diffusers' for every sigma_data

    def sampling_sigmas(self, steps: int, tokens: int, equal_spacing: bool, shift: float | None = None) -> list[float]:
        import diffusers

        euler: Any = diffusers.EDMEulerScheduler.from_config(self.scheduler.config)
        euler.set_timesteps(steps)
        return euler.sigmas.tolist()

    def scalings(self, sigma: Tensor) -> Scalings:
        c_in = (sigma**2 + self.sigma_data**2).rsqrt()
        return Scalings(c_in, (self.sigma_data * c_in) ** 2, self.sign * sigma * self.sigma_data * c_in)


def build_scheduler(config: Mapping[str, Any]) -> Any:
    """The scheduler of diffusers with this ``config``.

    Raises:
        ValueError: if its ``_class_name`` is not a scheduler of diffusers, or its values describe none.
    """
    import diffusers

    name = config.get("_class_name")
    scheduler_class: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, diffusers.SchedulerMixin)):
        raise ValueError(f"the scheduler's config has _class_name={name!r}, expected a scheduler of diffusers")
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 2 <= steps <= _MAX_TIMESTEPS:
        raise ValueError(f"the scheduler's num_train_timesteps={steps}: expected 2 to {_MAX_TIMESTEPS:,}")
    try:
        return scheduler_class.from_config(  # type: ignore[attr-defined]
            {key: value for key, value in config.items() if not key.startswith("_")}
        )
    except Exception as error:  # whatever a constructor of diffusers raises for a config's values
        raise ValueError(f"the config of the scheduler {name} describes none: {one_line(error, 500)}") from error


def read_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule of a scheduler's config.

    Raises:
        ValueError: for a scheduler of an unsupported family, or noise levels that do not increase.
    """
    scheduler = build_scheduler(config)
    name = config["_class_name"]
    if name.startswith("FlowMatch") or scheduler.config.get("prediction_type") == "flow_prediction":
        return FlowSchedule(scheduler)
    if name.startswith("EDM"):
        return EDMSchedule(scheduler)
    if not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            f"the schedule of {name} is not supported: expected discrete variance-preserving timesteps "
            "(DDPM, DDIM, PNDM, Euler, DPMSolver, LCM, ...), flow matching (FlowMatchEulerDiscreteScheduler) or EDM's "
            "(EDMEulerScheduler)"
        )
    schedule = VariancePreservingSchedule(scheduler)
    levels = schedule.log_sigmas
    if levels.ndim != 1 or len(levels) < 2 or not (levels.isfinite().all() and (levels.diff() > 0).all()):
        raise ValueError(
            f"the noise levels of {name} do not increase with its timesteps: check beta_start, beta_end, beta_schedule "
            "and trained_betas in its config"
        )
    return schedule


def tabulated_timesteps(schedule: NoiseSchedule, sigmas: Sequence[float]) -> list[int] | None:
    """The integer timesteps of noise levels, the only ones of diffusers' schedulers.

    It is None for flow matching and EDM, whose timesteps are real numbers.

    Raises:
        ValueError: for a level between two timesteps, or that of timestep 0, which is the image for schedulers; for
            several levels of EDM's, whose schedulers neither add noise between steps nor take a pipeline's levels.
    """
    if isinstance(schedule, EDMSchedule) and len(sigmas) > 1:
        raise ValueError(
            f"{len(sigmas)} steps: EDM's schedulers of diffusers neither add noise between steps nor take levels, so "
            "that no pipeline could draw from this generator: set generator.later_sigmas=[]"
        )
    if not isinstance(schedule, VariancePreservingSchedule):
        return None
    timesteps = []
    for sigma in sigmas:
        exact = schedule.timestep(torch.tensor([sigma])).item()
        nearest = max(1, round(exact))
        if abs(exact - nearest) > 0.01:  # no more than 1e-4 of sigma
            around = [max(1, int(exact)), max(1, int(exact)) + 1]
            levels = " and ".join(f"{schedule.sigmas[t]:.7g} (timestep {t})" for t in around)
            raise ValueError(
                f"sigma={sigma}: schedulers of diffusers have the noise levels of integer timesteps only; the nearest "
                f"are {levels}; use one of them in generator.sigma_init and generator.later_sigmas"
            )
        timesteps.append(nearest)
    return timesteps

"""f-divergences, one class each: the function f and the weight h of the difference of the scores.

``D_f(p||q) = E_q[f(r)]`` with ``r = p/q``. p is the distribution of the teacher (or the data), q that of the generator.
The gradient by the generator weights the difference of the scores by ``h(r) = r^2 f''(r)`` (Xu, Nie, Vahdat 2025, arXiv
2502.15681, theorem 1). The diffusion expansion has the same weight (Wang et al. 2025, arXiv 2505.20755). Objectives use
only ``h``. Its argument is ``log r``, so that neither r nor 1/r overflows.
"""

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from onestep.precision import double
from onestep.ranges import checked


class Divergence(ABC):
    """An f-divergence ``E_q[f(p/q)]``: its ``f`` and its weight ``h(r) = r^2 f''(r)``."""

    needs_ratio: bool = True  # False for a constant weight, which needs no discriminator

    @abstractmethod
    def f(self, r: Tensor) -> Tensor:
        """``f(r)`` for positive ``r`` of any shape."""

    @abstractmethod
    def weight(self, log_ratio: Tensor) -> Tensor:
        """``h(r) = r^2 f''(r)`` [B] for ``log_ratio`` [B] = log r.

        Keeps shape and dtype, is finite in float32 for log r in [-40, 40], and is differentiable repeatedly.
        """

    def weight_slope(self, log_ratio: Tensor) -> Tensor:
        """``r h'(r) = dh/dlog r`` [B] for ``log_ratio`` [B]; differentiable if ``log_ratio`` requires a gradient."""
        differentiable = log_ratio.requires_grad and torch.is_grad_enabled()
        with torch.enable_grad():
            log_r = log_ratio if differentiable else log_ratio.detach().requires_grad_()
            weight = self.weight(log_r)
            if not weight.requires_grad:  # a constant weight
                return torch.zeros_like(log_ratio)
            (slope,) = torch.autograd.grad(weight.sum(), log_r, create_graph=differentiable)
        return slope


class ReverseKL(Divergence):
    """``KL(q||p)``: f = -log r, h = 1. The divergence of Diff-Instruct, VSD, DMD and SiD."""

    needs_ratio = False

    def f(self, r: Tensor) -> Tensor:
        return -r.log()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return torch.ones_like(log_ratio)


class ForwardKL(Divergence):
    """``KL(p||q)``: f = r log r, h = r."""

    def f(self, r: Tensor) -> Tensor:
        return r * r.log()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return log_ratio.exp()


class Jeffreys(Divergence):
    """``KL(p||q) + KL(q||p)``: f = (r-1) log r, h = r + 1."""

    def f(self, r: Tensor) -> Tensor:
        return (r - 1) * r.log()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return log_ratio.exp() + 1


class JensenShannon(Divergence):
    """Twice the textbook's Jensen-Shannon divergence: f = r log r - (r+1) log((r+1)/2), h = r/(r+1)."""

    def f(self, r: Tensor) -> Tensor:
        # r log r - (r+1) log(r+1) = -r log(1+1/r) - log(1+r): its derivatives do not cancel at small or large r.
        return (r + 1) * math.log(2) - r * torch.log1p(1 / r) - torch.log1p(r)

    def weight(self, log_ratio: Tensor) -> Tensor:
        return torch.sigmoid(log_ratio)


class SoftenedReverseKL(Divergence):
    """``2 KL((p+q)/2 || p)``: f = (r+1) log((r+1)/(2r)), h = 1/(r+1)."""

    def f(self, r: Tensor) -> Tensor:
        return (r + 1) * (torch.log1p(1 / r) - math.log(2))

    def weight(self, log_ratio: Tensor) -> Tensor:
        return torch.sigmoid(-log_ratio)


class SquaredHellinger(Divergence):
    """f = 1 - sqrt r, h = sqrt(r)/4."""

    def f(self, r: Tensor) -> Tensor:
        return 1 - r.sqrt()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return (log_ratio / 2).exp() / 4


class PearsonChi2(Divergence):
    """f = (r-1)^2, h = 2 r^2."""

    def f(self, r: Tensor) -> Tensor:
        return (r - 1).square()

    def weight(self, log_ratio: Tensor) -> Tensor:
        return 2 * (2 * log_ratio).exp()


class NeymanChi2(Divergence):
    """f = (1-r)^2/r, h = 2/r."""

    def f(self, r: Tensor) -> Tensor:
        return r - 2 + 1 / r  # (1-r)^2 would cancel in the second derivative at large r

    def weight(self, log_ratio: Tensor) -> Tensor:
        return 2 * (-log_ratio).exp()


class LeCam(Divergence):
    """f = (r-1)^2/(r+1), h = 8 r^2/(r+1)^3."""

    def f(self, r: Tensor) -> Tensor:
        return r - 3 + 4 / (r + 1)  # (r-1)^2 would cancel in the second derivative at large r

    def weight(self, log_ratio: Tensor) -> Tensor:
        return 8 * torch.sigmoid(log_ratio).square() * torch.sigmoid(-log_ratio)


@checked
class Alpha(Divergence):
    """The alpha family: f = (r^a - a r + a - 1)/(a (a-1)), h = r^a.

    Its limits at a = 0 and a = 1 are reverse and forward KL, up to terms ``r - 1`` that do not change the divergence.
    Raises ValueError for ``alpha`` outside [-2, 2]: there the weight and its slopes overflow float32 for log r in
    [-40, 40].
    """

    def __init__(self, alpha: Annotated[float, Ge(-2), Le(2)]) -> None:
        self.alpha = alpha
        self.needs_ratio = alpha != 0

    def f(self, r: Tensor) -> Tensor:
        a = self.alpha
        if a == 0:
            return r - 1 - r.log()
        if a == 1:
            return r * r.log() - r + 1
        return (r**a - a * r + a - 1) / (a * (a - 1))

    def weight(self, log_ratio: Tensor) -> Tensor:
        return (self.alpha * log_ratio).exp()


class CustomDivergence(Divergence):
    """A user's ``f``. Autograd computes its weight r^2 f''(r) in float64.

    ``f`` is a function or its import path, such as "my_module.f". It maps a float64 tensor [N] of positive ratios to
    f(r) [N], elementwise, in torch operations that are differentiable twice (three times for Uni-Instruct). It must be
    convex. Raises ValueError if ``f`` cannot be imported, or has another shape, no second derivative or no convexity.
    """

    def __init__(self, f: Callable[[Tensor], Tensor] | str) -> None:
        self.function = _import_function(f) if isinstance(f, str) else f
        probe = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
        values = self.f(probe.exp())
        if not isinstance(values, Tensor) or values.shape != probe.shape:
            raise ValueError(f"f must map a tensor [N] to a tensor [N], but maps [3] to {values}")
        weight = self.weight(probe)
        if not (weight.isfinite().all() and (weight >= 0).all() and (weight > 0).any()):
            raise ValueError(f"f must be convex, but r^2 f''(r) is {weight.tolist()} at log r = {probe.tolist()}")

    def f(self, r: Tensor) -> Tensor:
        return self.function(r)

    def weight(self, log_ratio: Tensor) -> Tensor:
        differentiable = log_ratio.requires_grad and torch.is_grad_enabled()
        with torch.enable_grad():
            log_r = log_ratio if differentiable else log_ratio.detach().requires_grad_()
            # float64: r spans e^-40 to e^40, and the second derivative of a naively written f cancels.
            r = double(log_r).exp()
            values = self.f(r)
            slope = torch.autograd.grad(values.sum(), r, create_graph=True)[0] if values.requires_grad else values
            if not slope.requires_grad:
                raise ValueError("f must have a second derivative by r, but it is affine or breaks autograd's graph")
            (curvature,) = torch.autograd.grad(slope.sum(), r, create_graph=differentiable)
            weight = (r.square() * curvature).to(log_ratio.dtype).to(log_ratio.device)
        return weight if differentiable else weight.detach()


def _import_function(path: str) -> Callable[[Tensor], Tensor]:
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"found no function at {path!r} ({error}); expected an import path such as 'my_module.f'"
        ) from error
    if not callable(function):
        raise ValueError(f"expected {path!r} to be a function, got {type(function).__name__}")
    return function

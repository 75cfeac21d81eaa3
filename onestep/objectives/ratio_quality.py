"""How good an estimate of log r = log p/q is, from samples of p and q on which it was not trained.

Every bound holds for any estimate, and is equal to the divergence for the exact one. Values are in nats. The mean of an
exponential is that of finitely many samples: where a few of these carry it, the bounds by Donsker and Varadhan are too
high.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from onestep.precision import double


def jensen_shannon_bound(real: Tensor, generated: Tensor) -> Tensor:
    """A lower bound of Jensen-Shannon's divergence, at most log 2: ``log 2`` minus half of the logistic loss.

    Args:
        real: estimates [N] of log r at samples of p.
        generated: estimates [M] at samples of q.
    """
    return math.log(2) - (softplus(-double(real)).mean() + softplus(double(generated)).mean()) / 2


def kl_bounds(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Lower bounds of KL(p||q) and KL(q||p) (Donsker and Varadhan 1983), ``E_p[T] - log E_q[exp T]`` with T = log r.

    The arguments are those of :func:`jensen_shannon_bound`.
    """
    log_mean, log_mean_of_inverse = _log_mean_exp(generated), _log_mean_exp(-real)
    return double(real).mean() - log_mean, -double(generated).mean() - log_mean_of_inverse


def ratio_means(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """``E_q[r]`` and ``E_p[1/r]``, which are 1 for the exact ratio.

    The arguments are those of :func:`jensen_shannon_bound`.
    """
    return _log_mean_exp(generated).exp(), _log_mean_exp(-real).exp()


def effective_fraction(weight: Tensor) -> Tensor:
    """The effective number of samples with ``weight`` [N] >= 0 over their number, ``(sum h)^2 / (N sum h^2)``.

    1 for equal weights, 1/N if one sample has all weight; without any weight it is not a number.
    """
    exact = double(weight)
    exact = exact / exact.max()  # whose squares do not overflow
    return exact.sum() ** 2 / (len(exact) * exact.square().sum())


def _log_mean_exp(values: Tensor) -> Tensor:
    return torch.logsumexp(double(values), 0) - math.log(len(values))

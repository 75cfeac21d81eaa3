"""The interface of objectives: predictions in, per-sample losses out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from onestep.noise import expand_like, per_sample_sum
from onestep.objectives.divergences import Divergence


@dataclass(frozen=True)
class Predictions:
    """Predictions of the teacher, the fake score and the discriminator on a batch of noised generated samples.

    Those that the objective does not need can be None. ``x_generated`` and ``x_sigma`` carry the graph to the
    generator. The other tensors carry a graph to ``x_sigma`` only if the objective sets ``differentiates_scores``. They
    never carry a graph to a network's parameters.
    """

    x_generated: Tensor  # [B, ...], the generator's output, in data units
    x_sigma: Tensor  # [B, ...], x_generated + sigma * noise
    sigma: Tensor  # [B], in data units
    x0_teacher: Tensor | None = None  # [B, ...], the teacher's x0-prediction at (x_sigma, sigma)
    x0_fake: Tensor | None = None  # [B, ...], the fake score's x0-prediction
    # [B], log p/q at (x_sigma, sigma): p the distribution of the teacher (or the data), q that of the generator
    log_ratio: Tensor | None = None
    # [B], the generator's adversarial loss at (x_sigma, sigma)
    adversarial: Tensor | None = None
    # [], divisor of the divergence's weights. None: their mean over this batch. Micro-batches have one divisor, the
    # mean over the full batch.
    weight_scale: Tensor | None = None


class Objective(ABC):
    """A distillation objective: per-sample losses for the generator.

    The gradient of their mean is the generator's gradient in the paper. Objectives are functions without state. They
    need no loop, no accelerator and no configuration.

    Attributes:
        needs_teacher: ``x0_teacher`` is required.
        needs_fake_score: ``x0_fake`` is required.
        needs_ratio: ``log_ratio`` is required.
        has_losses: False if it has no losses of its own: the other terms are the generator's whole loss.
        needs_adversarial: the adversarial term is required.
        differentiates_scores: ``x0_teacher``, ``x0_fake`` and ``log_ratio`` must carry a graph to ``x_sigma``.
    """

    needs_teacher: bool = True
    needs_fake_score: bool = True
    needs_ratio: bool = False
    has_losses: bool = True
    needs_adversarial: bool = False
    differentiates_scores: bool = False

    @abstractmethod
    def __call__(self, predictions: Predictions) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The losses [B], None without any, and named diagnostics, which are detached and [B] or scalar."""

    def weight_scale(self, log_ratio: Tensor) -> Tensor:
        """The divisor of the divergence's weights for a batch with ``log_ratio`` [B]; 1 without such weights."""
        return log_ratio.new_ones(())


def require_x0_teacher(predictions: Predictions) -> Tensor:
    """``x0_teacher`` of the ``predictions``; raises ValueError if it is missing."""
    if predictions.x0_teacher is None:
        raise ValueError("x0_teacher is missing: this needs the predictions of the teacher")
    return predictions.x0_teacher


def require_x0_fake(predictions: Predictions) -> Tensor:
    """``x0_fake`` of the ``predictions``; raises ValueError if it is missing."""
    if predictions.x0_fake is None:
        raise ValueError("x0_fake is missing: this objective needs the predictions of a fake score")
    return predictions.x0_fake


def require_log_ratio(predictions: Predictions, divergence: Divergence) -> Tensor:
    """The ``log_ratio`` [B] for the ``divergence``; zeros if its weight is constant.

    Raises ValueError if the weight depends on the ratio and ``log_ratio`` is missing.
    """
    if not divergence.needs_ratio:
        return torch.zeros_like(predictions.sigma)
    if predictions.log_ratio is None:
        raise ValueError(
            f"log_ratio is missing: {type(divergence).__name__} weights samples by the density ratio; add a "
            "discriminator, or use ReverseKL, which needs none"
        )
    return predictions.log_ratio


def require_path_gradient(predictions: Predictions, **tensors: Tensor | None) -> None:
    """Raises ValueError for a prediction without a graph: a score under no_grad would silently bias the gradient."""
    if not (predictions.x_sigma.requires_grad and torch.is_grad_enabled()):
        return
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.requires_grad:
            raise ValueError(f"{name} must carry a graph to x_sigma; compute it without no_grad and detach")


def descend(x: Tensor, gradient: Tensor) -> Tensor:
    """Losses [B] with gradient ``gradient`` by ``x``, both [B, ...], and value |gradient|^2 / 2.

    Value and gradient equal those of ``|x - stop(x - gradient)|^2 / 2``, DMD's surrogate. In a log, the value shows the
    size of the gradient. This form does not subtract the gradient from x, which would round it to the precision of x.
    """
    gradient = gradient.detach()
    return per_sample_sum(gradient * (x - x.detach()) + gradient.square() / 2)


def score_difference(x0_a: Tensor, x0_b: Tensor, sigma: Tensor) -> Tensor:
    """``score_a - score_b`` [B, ...] at the same x_sigma: ``(x0_a - x0_b) / sigma^2``."""
    return (x0_a - x0_b) / expand_like(sigma, x0_a).square()


def score_distance(
    predictions: Predictions, x0_fake: Tensor, squared_weight: Tensor | float, projected_weight: Tensor | float
) -> Tensor:
    """``(squared_weight |d|^2 + projected_weight d . (x0_fake - x_generated)) / sigma^4`` [B].

    Here ``d = x0_teacher - x0_fake``. By the score identity (SiD, arXiv 2404.04057, eq. 14 and 23) these two terms have
    the gradient of a weighted squared distance of the scores. The weights are [B] or numbers.
    """
    x0_teacher = require_x0_teacher(predictions)
    d = x0_teacher - x0_fake
    projected = per_sample_sum(d * (x0_fake - predictions.x_generated))
    return (squared_weight * per_sample_sum(d.square()) + projected_weight * projected) / predictions.sigma**4


def weight_statistics(weight: Tensor, x0_fake: Tensor, predictions: Predictions) -> dict[str, Tensor]:
    """Detached diagnostics: the divergence's ``weight`` [B], ``log_ratio`` [B] and ``score_gap``, a scalar.

    ``score_gap`` is the mean |x0_teacher - x0_fake| per dimension, in data units.
    """
    statistics = {
        "weight": weight.detach(),
        "score_gap": (require_x0_teacher(predictions) - x0_fake).detach().abs().mean(),
    }
    if predictions.log_ratio is not None:
        statistics["log_ratio"] = predictions.log_ratio.detach()
    return statistics

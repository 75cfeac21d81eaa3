"""The interface of objectives: predictions in, per-sample losses out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from onestep.noise import expand_like, per_sample_sum
from onestep.objectives.divergences import Divergence


@dataclass(frozen=True)
class Predictions:
    """What the teacher, the fake score and the discriminator say of a batch of noised generated samples.

    ``x_generated`` and ``x_sigma`` carry the graph back to the generator. The other tensors carry a graph back to
    ``x_sigma`` only where the objective asks for it (``differentiates_scores``); no network's parameters are ever
    differentiated through them.
    """

    x_generated: Tensor  # [B, ...], the generator's output, in data units
    x_sigma: Tensor  # [B, ...], x_generated + sigma * noise
    sigma: Tensor  # [B], in data units
    x0_teacher: Tensor  # [B, ...], the teacher's x0-prediction at (x_sigma, sigma)
    x0_fake: Tensor | None = None  # [B, ...], the fake score's
    log_ratio: Tensor | None = None  # [B], log p/q at (x_sigma, sigma): p the teacher's (or the data's) law, q ours
    # [], what the divergence's weights are divided by; None for their mean over this batch, of which there is one each
    # iteration: where a batch is evaluated in micro-batches, the scale is that of all of them
    weight_scale: Tensor | None = None


class Objective(ABC):
    """A distillation objective: per-sample losses whose mean's gradient by the generator is the method's.

    Objectives are functions without state: they need no loop, no accelerator and no configuration.

    Attributes:
        needs_fake_score: whether ``x0_fake`` must be given.
        needs_ratio: whether ``log_ratio`` must be given.
        differentiates_scores: whether ``x0_teacher``, ``x0_fake`` and ``log_ratio`` must carry a graph to ``x_sigma``.
    """

    needs_fake_score: bool = True
    needs_ratio: bool = False
    differentiates_scores: bool = False

    @abstractmethod
    def __call__(self, predictions: Predictions) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses [B] and named diagnostics, detached, [B] or scalars."""

    def weight_scale(self, log_ratio: Tensor) -> Tensor:
        """The number that the weights of a batch with ``log_ratio`` [B] are divided by; 1 without such weights."""
        return log_ratio.new_ones(())


def require_x0_fake(predictions: Predictions) -> Tensor:
    """``x0_fake`` of the ``predictions``; raises ValueError where it is missing."""
    if predictions.x0_fake is None:
        raise ValueError("x0_fake is missing: this objective compares the teacher with a fake score, so it needs one")
    return predictions.x0_fake


def require_log_ratio(predictions: Predictions, divergence: Divergence) -> Tensor:
    """The ``log_ratio`` [B] to give to the ``divergence``: zeros where its weight depends on none.

    Raises ValueError where it depends on one and none was given.
    """
    if not divergence.needs_ratio:
        return torch.zeros_like(predictions.sigma)
    if predictions.log_ratio is None:
        raise ValueError(
            f"log_ratio is missing: {type(divergence).__name__} weighs samples by the density ratio, so it needs a "
            "discriminator; add one, or use ReverseKL, which needs none"
        )
    return predictions.log_ratio


def require_path_gradient(predictions: Predictions, **tensors: Tensor | None) -> None:
    """Raises ValueError for a prediction that lost its graph: a score under no_grad would bias the gradient unseen."""
    if not (predictions.x_sigma.requires_grad and torch.is_grad_enabled()):
        return
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.requires_grad:
            raise ValueError(f"{name} must carry a graph back to x_sigma; do not compute it under no_grad or detached")


def descend(x: Tensor, gradient: Tensor) -> Tensor:
    """Losses [B] whose gradient by ``x`` is exactly ``gradient``, both [B, ...], and whose value is |gradient|^2 / 2.

    They are the value and the gradient of ``|x - stop(x - gradient)|^2 / 2``, the surrogate of DMD: in a log, the value
    says how large the gradient still is. Written so, the gradient is not rounded to the precision of x, as it is by
    subtracting it from x.
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

    Here ``d = x0_teacher - x0_fake``.
    The score identity (SiD, arXiv 2404.04057, eq. 14 and 23) turns the gradient of a weighted squared distance of the
    scores into that of these two terms; the weights are [B] or numbers.
    """
    d = predictions.x0_teacher - x0_fake
    projected = per_sample_sum(d * (x0_fake - predictions.x_generated))
    return (squared_weight * per_sample_sum(d.square()) + projected_weight * projected) / predictions.sigma**4


def weight_statistics(weight: Tensor, x0_fake: Tensor, predictions: Predictions) -> dict[str, Tensor]:
    """For the log, detached: the divergence's ``weight`` [B], the ``log_ratio`` [B], and teacher minus fake score.

    ``score_gap`` is the mean |x0_teacher - x0_fake| per dimension, in data units.
    """
    statistics = {
        "weight": weight.detach(),
        "score_gap": (predictions.x0_teacher - x0_fake).detach().abs().mean(),
    }
    if predictions.log_ratio is not None:
        statistics["log_ratio"] = predictions.log_ratio.detach()
    return statistics

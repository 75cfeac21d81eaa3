"""The gradient penalty of a method's discriminator."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onestep.denoiser import Condition, concatenate_conditions
from onestep.distillation.view import View
from onestep.models.freezing import frozen
from onestep.models.guidance import unguided
from onestep.noise import expand_like
from onestep.objectives.adversarial import log_ratio_of
from onestep.objectives.base import score_difference
from onestep.objectives.gradient_penalty import GradientPenalty
from onestep.precision import without_bf16


def check_penalty(penalty: GradientPenalty | None, fake_score: Any, view: View) -> None:
    """Check that the scores that a penalty matches are there, and are those of what the discriminator sees.

    Raises:
        ValueError: if they are not.
    """
    if penalty is None or not penalty.matches_scores:
        return
    remedy = "use penalty=r1, or penalty=none"
    if fake_score is None:
        raise ValueError(f"penalty: it matches the scores, and this objective has no fake score: {remedy}")
    if view.is_own:
        raise ValueError(
            "penalty: it matches the scores of the noised samples, and the discriminator sees other ones, by "
            f"discriminator.noise_level or diff_augment: {remedy}"
        )


def penalize(
    penalty: GradientPenalty, logits: Callable[[Tensor, Tensor, Condition], Tensor], read: Sequence[nn.Module | None],
    scores: Sequence[nn.Module | None], at: tuple[Tensor, Tensor, Condition], direction: Tensor,
) -> Tensor:  # fmt: skip
    """The penalties [B], with a graph to the parameters of the discriminator and of a host that is trained.

    They are computed in float32 where autocast is to bf16, which would round off differences of logits.

    Args:
        penalty: of the gradient by the sample; by its noise, if it matches the scores.
        logits: the discriminator's logits [B, P] of noised samples, their levels and their condition.
        read: the networks that ``logits`` evaluates.
        scores: the teacher and the fake score.
        at: noised samples [B, ...], their levels [B], and their condition.
        direction: standard normal numbers [B, ...], independent of the samples.
    """
    x_sigma, sigma, condition = at
    unit: Tensor | float = 1.0
    target = None
    if penalty.matches_scores:
        unit = expand_like(sigma, x_sigma)
        target = _score_difference(scores, at) * unit

    def log_ratio(x: Tensor) -> Tensor:  # of x_sigma / unit, once or twice
        times = len(x) // len(sigma)
        x_sigma = (x.unflatten(0, (times, -1)) * unit).flatten(0, 1)
        return log_ratio_of(logits(x_sigma, sigma.repeat(times), concatenate_conditions(*[condition] * times)))

    with frozen(scores[0]), without_bf16(nn.ModuleList(filter(None, read)), x_sigma.device):
        return penalty(log_ratio, x_sigma / unit, direction, target)


@torch.no_grad()
def _score_difference(networks: Sequence[Any], at: tuple[Tensor, Tensor, Condition]) -> Tensor:
    """The score of p minus that of q [B, ...], by teacher and fake score without guidance."""
    x0 = []
    for network in networks:
        with unguided(network), without_bf16(network, at[0].device):
            x0.append(network(*at))
    return score_difference(x0[0], x0[1], at[1])

"""The gradient penalty of a method's discriminator."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from onestep.denoiser import Condition, concatenate_conditions
from onestep.models.freezing import frozen
from onestep.models.guidance import unguided
from onestep.noise import expand_like
from onestep.objectives.adversarial import log_ratio_of
from onestep.objectives.base import score_difference
from onestep.objectives.gradient_penalty import GradientPenalty
from onestep.precision import without_bf16

if TYPE_CHECKING:
    from onestep.distillation.method import Method


def check_penalty(method: "Method") -> None:
    """Check that the scores that the penalty matches are there, and are those of what the discriminator sees.

    Raises:
        ValueError: if they are not.
    """
    if method.penalty is None or not method.penalty.matches_scores:
        return
    remedy = "use penalty=r1, or penalty=none"
    if method.fake_score is None:
        raise ValueError(f"penalty: it matches the scores, and this objective has no fake score: {remedy}")
    if method.view.is_own:
        raise ValueError(
            "penalty: it matches the scores of the noised samples, and the discriminator sees other ones, by "
            f"discriminator.noise_level or diff_augment: {remedy}"
        )


def penalize(
    method: "Method", penalty: GradientPenalty, at: tuple[Tensor, Tensor, Condition], direction: Tensor
) -> Tensor:
    """The penalties [B], with a graph to the parameters of the discriminator and of a host that is trained.

    They are computed in float32 where autocast is to bf16, which would round off differences of logits.

    Args:
        method: of the networks.
        penalty: of the gradient by the sample; by its noise, if it matches the scores.
        at: noised samples [B, ...], their levels [B], and their condition.
        direction: standard normal numbers [B, ...], independent of the samples.
    """
    x_sigma, sigma, condition = at
    unit: Tensor | float = 1.0
    target = None
    if penalty.matches_scores:
        unit = expand_like(sigma, x_sigma)
        target = _score_difference(method, at) * unit

    def log_ratio(x: Tensor) -> Tensor:  # of x_sigma / unit, once or twice
        times = len(x) // len(sigma)
        x_sigma = (x.unflatten(0, (times, -1)) * unit).flatten(0, 1)
        return log_ratio_of(method.logits(x_sigma, sigma.repeat(times), concatenate_conditions(*[condition] * times)))

    networks = nn.ModuleList(filter(None, [method.host, method.discriminator]))
    with frozen(method.teacher), without_bf16(networks, x_sigma.device):
        return penalty(log_ratio, x_sigma / unit, direction, target)


@torch.no_grad()
def _score_difference(method: "Method", at: tuple[Tensor, Tensor, Condition]) -> Tensor:
    """The score of p minus that of q [B, ...], by teacher and fake score without guidance."""
    x0: list[Tensor] = []
    for network in filter(None, (method.teacher, method.fake_score)):
        with unguided(network), without_bf16(network, at[0].device):
            x0.append(network(*at))
    return score_difference(x0[0], x0[1], at[1])

"""What every training step shares: the learning rate's course and one guarded optimiser step."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed
from torch import Tensor, nn

from onestep.networks.base import DenoiserNetwork
from onestep.noise import per_sample_sum
from onestep.training.settings import TrainingSettings


def lr_factor(settings: TrainingSettings, images_seen: int) -> float:
    """The share of the learning rate after ``images_seen`` images: linear warm-up, then a cosine to ``final_lr``."""
    warmup = min(1.0, images_seen / settings.warmup_images) if settings.warmup_images else 1.0
    cosine = (1 + math.cos(math.pi * min(1.0, images_seen / settings.images))) / 2
    return warmup * (settings.final_lr + (1 - settings.final_lr) * cosine)


def denoising_loss(network: DenoiserNetwork, prediction: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Denoising score matching [B]: the mean squared x0-error in the network's own weighting (arXiv 2206.00364, eq. 8).

    Unweighted, it would learn little at small sigma.
    """
    return network.denoising_weight(sigma) * per_sample_sum((prediction - x0) ** 2) / x0[0].numel()


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    terms: Mapping[str, Tensor],
    settings: TrainingSettings,
    cycle: int,
) -> Tensor:
    """Descend the sum of ``terms``, scalars by name, averaged over processes; returns the gradient's norm.

    One backward pass is averaged over processes at once, whatever forward passes led to it.

    Raises:
        ValueError: if a term or the gradient is not finite; nothing has been changed then.
    """
    total = torch.stack(list(terms.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, settings.grad_clip)
    values = torch.stack([*(term.detach().float() for term in terms.values()), norm.float()])
    if not values.isfinite().all():  # the step's one wait for the device
        named = dict(zip([*terms, "gradient norm"], values.tolist(), strict=True))
        raise ValueError(
            f"non-finite value in cycle {cycle}: {named}. Nothing of this step was applied, and the last checkpoint is "
            "whole: lower the learning rate or the weight of that term and go on with resume=auto"
        )
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * lr_factor(settings, cycle * settings.batch_size)
    optimizer.step()
    return norm.detach()


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Average the gradients over processes, in one reduction."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for parameter, values in zip(parameters, flat.split([p.numel() for p in gradients]), strict=True):
        parameter.grad = values.view_as(parameter)

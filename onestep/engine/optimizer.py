"""What every training step shares: the learning rate's course, and the guarded steps of an optimiser."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from onestep.engine.settings import TrainingSettings
from onestep.engine.shard import full_tensor, is_sharded
from onestep.models.base import DenoiserNetwork
from onestep.noise import per_sample_sum

_SCALE_GROWS_AFTER = 2000  # steps without an overflow, as torch's GradScaler has it


def lr_factor(settings: TrainingSettings, images_seen: int) -> float:
    """The share of the learning rate after ``images_seen`` images: linear warm-up, then a cosine to ``final_lr``."""
    warmup = min(1.0, images_seen / settings.warmup_images) if settings.warmup_images else 1.0
    cosine = (1 + math.cos(math.pi * min(1.0, images_seen / settings.total_images))) / 2
    return warmup * (settings.final_lr + (1 - settings.final_lr) * cosine)


def denoising_loss(network: DenoiserNetwork, prediction: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Denoising score matching [B]: the mean squared x0-error in the network's own weighting (arXiv 2206.00364, eq. 8).

    Unweighted, it would learn little at small sigma.
    """
    return network.loss_weight(sigma) * per_sample_sum((prediction - x0) ** 2) / x0[0].numel()


@dataclass(frozen=True)
class Term:
    """A term of a loss: per-sample ``losses`` [b], of which ``weight`` times the mean is descended."""

    losses: Tensor
    weight: float = 1.0

    @property
    def mean(self) -> Tensor:
        """The weighted mean, a scalar."""
        return self.weight * self.losses.mean()

    def detach(self) -> "Term":
        """Without its graph."""
        return Term(self.losses.detach(), self.weight)


@dataclass(frozen=True)
class BadSample:
    """A sample whose loss was not finite: its term, its place in this process's share of the batch, and its sigma."""

    term: str
    place: int
    sigma: float


class SkippedStepError(Exception):
    """A step that would not have been finite; nothing of it was applied.

    Args:
        values: each term, averaged over the global batch, and the gradient's norm.
        samples: those of this process that are to blame; none where the losses are finite and the gradient is not.
        overflow: whether it was fp16's loss scale that was too high alone; it has been lowered.
    """

    def __init__(self, values: dict[str, float], samples: list[BadSample], overflow: bool) -> None:
        super().__init__(str(values))
        self.values, self.samples, self.overflow = values, samples, overflow


class NonFiniteError(ValueError):
    """As many steps were refused in a row as a run bears."""


class GuardedOptimizer:
    """Steps of one optimiser: accumulated, averaged over processes, clipped; finite, or refused.

    A step is ``settings.accumulation`` calls of :meth:`backward`, then one of :meth:`step`, the only one in which
    processes wait for each other. In fp16 the loss is multiplied so that small gradients do not vanish, by a scale of
    each optimiser's own. (torch's GradScaler takes no mixture of whole and shared gradients, and looks for overflows
    in each process alone.)

    Args:
        optimizer: its gradients' parameters may be whole or shared.
        settings: the accumulation, the clipping and the learning rate's course.
        fp16: whether to scale the loss.
        networks: what the parameters are of.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        settings: TrainingSettings,
        fp16: bool = False,
        networks: Iterable[nn.Module] = (),
    ) -> None:
        self.optimizer, self.settings, self.fp16 = optimizer, settings, fp16
        self.shared = [module for network in networks for module in network.modules() if isinstance(module, FSDPModule)]
        self.loss_scale = 2.0**16 if fp16 else 1.0
        self.steps_at_scale = 0
        self.rate = 1.0  # of the configured learning rate, beside its course
        self._rounds: list[tuple[Mapping[str, Term], Tensor]] = []

    def backward(self, terms: Mapping[str, Term], sigma: Tensor) -> None:
        """Add the gradient of the sum of ``terms`` over one round of samples, at the noise levels ``sigma`` [b]."""
        if not self._rounds:
            self.optimizer.zero_grad(set_to_none=True)
        total = torch.stack([term.mean for term in terms.values()]).sum()
        for module in self.shared:  # their gradients are reduced in the backward pass itself
            module.set_requires_gradient_sync(len(self._rounds) + 1 == self.settings.accumulation, recurse=False)
        (total * (self.loss_scale / self.settings.accumulation)).backward()
        self._rounds.append(({name: term.detach() for name, term in terms.items()}, sigma))

    def step(self, iteration: int) -> Tensor:
        """Descend what was accumulated; returns the gradient's norm before it is clipped.

        Raises:
            SkippedStepError: if a term or the gradient is not finite in any process; nothing has been changed then.
        """
        rounds, self._rounds = self._rounds, []
        names = list(rounds[0][0])
        terms = torch.stack([torch.stack([terms[name].mean for terms, _ in rounds]).mean() for name in names])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        average_over_processes([terms, *(p.grad for p in parameters if not is_sharded(p))])
        if self.fp16:
            for part in _by_kind(parameters):
                torch._foreach_mul_([p.grad for p in part if p.grad is not None], 1 / self.loss_scale)
        norm = _clip(parameters, self.settings.grad_clip)
        values = torch.stack([*terms.float(), norm.float()])
        if not values.isfinite().all():  # the step's one wait for the device
            raise self._refusal(dict(zip([*names, "gradient norm"], values.tolist(), strict=True)), rounds)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            course = lr_factor(self.settings, iteration * self.settings.batch_size)
            group["lr"] = group["initial_lr"] * course * self.rate
        self.optimizer.step()
        self._grow_loss_scale()
        return norm.detach()

    def discard(self) -> None:
        """Forget what was accumulated."""
        self._rounds = []
        self.optimizer.zero_grad(set_to_none=True)

    def _refusal(self, values: dict[str, float], rounds: list[tuple[Mapping[str, Term], Tensor]]) -> SkippedStepError:
        terms_are_finite = all(math.isfinite(value) for name, value in values.items() if name != "gradient norm")
        overflow = self.fp16 and terms_are_finite and self.loss_scale > 1
        if overflow:
            self.loss_scale, self.steps_at_scale = self.loss_scale / 2, 0
        samples = []
        for number, (terms, sigma) in enumerate(rounds):
            for name, term in terms.items():
                for index in (~term.losses.isfinite()).nonzero().flatten().tolist():
                    samples.append(BadSample(name, number * len(sigma) + index, sigma[index].item()))
        return SkippedStepError(values, samples, overflow)

    def _grow_loss_scale(self) -> None:
        if not self.fp16:
            return
        self.steps_at_scale += 1
        if self.steps_at_scale == _SCALE_GROWS_AFTER:
            self.loss_scale, self.steps_at_scale = self.loss_scale * 2, 0

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs beside the optimiser's own state."""
        return {name: getattr(self, name) for name in ("loss_scale", "steps_at_scale", "rate")}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.rate = state["rate"]
        if self.fp16:
            self.loss_scale, self.steps_at_scale = state["loss_scale"], int(state["steps_at_scale"])


def _by_kind(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The whole ones and the shared ones, which torch takes no list of both of; only what there is."""
    return [part for shared in (False, True) if (part := [p for p in parameters if is_sharded(p) is shared])]


def _clip(parameters: Sequence[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradients down to the norm ``largest`` over all of them; returns the norm that they had."""
    parts = _by_kind(parameters)
    norms = [full_tensor(nn.utils.get_total_norm([p.grad for p in part if p.grad is not None])) for part in parts]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    for part in parts:
        nn.utils.clip_grads_with_norm_(part, largest, norm)
    return norm


def average_over_processes(tensors: Sequence[Tensor]) -> None:
    """Average each of ``tensors`` over processes in place, all in one reduction for each dtype."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        some = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in some])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        for tensor, values in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
            tensor.copy_(values.view_as(tensor))

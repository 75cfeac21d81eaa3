"""The learning rate schedule, and optimiser steps that are skipped if they are not finite."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from onestep.engine.clipping import Clipping, by_kind, total_norm
from onestep.engine.settings import TrainingSettings
from onestep.engine.shard import is_sharded
from onestep.models.edm2.layers import MPConv
from onestep.models.spectral_norm import has_spectral_norm, iterate
from onestep.objectives.losses import Losses
from onestep.processes import average_over_processes

_SCALE_GROWS_AFTER = 2000  # steps without an overflow, the default of torch's GradScaler


def lr_factor(settings: TrainingSettings, images_seen: int) -> float:
    """The learning rate's factor after ``images_seen`` images: linear warm-up times a cosine decay to ``final_lr``."""
    warmup = min(1.0, images_seen / settings.warmup_images) if settings.warmup_images else 1.0
    cosine = (1 + math.cos(math.pi * min(1.0, images_seen / settings.total_images))) / 2
    return warmup * (settings.final_lr + (1 - settings.final_lr) * cosine)


@dataclass(frozen=True)
class BadSample:
    """A sample with a non-finite loss: the loss term, its position in this process's rows of the batch, its sigma."""

    term: str
    position: int
    sigma: float


class SkippedStepError(Exception):
    """A step with a non-finite loss or gradient. It changed no weight.

    Args:
        values: each loss term, averaged over the global batch, and the gradients' norms.
        samples: this process's samples with a non-finite loss; empty if only a gradient is non-finite.
        overflow: True if fp16's loss scale was too high; it has been halved.

    Attributes:
        batch: the batch of the iteration that has the samples, counted from 0.
    """

    batch = 0

    def __init__(self, values: dict[str, float], samples: list[BadSample], overflow: bool) -> None:
        super().__init__(str(values))
        self.values, self.samples, self.overflow = values, samples, overflow


class NonFiniteError(ValueError):
    """Too many consecutive skipped steps."""


@dataclass
class GuardState:
    """What a resumed run needs in addition to the optimisers' state.

    Args:
        lr_factor: factor of the learning rates in addition to their schedule, after a rollback.
        loss_scale: the factor of the loss in fp16, else 1.
        steps_at_scale: steps without an overflow since it last changed.
    """

    lr_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    loss_scale: Annotated[FiniteFloat, Field(ge=1)] = 1.0
    steps_at_scale: Annotated[int, Field(ge=0)] = 0


class GuardedOptimizer:
    """Steps of one or several optimisers from one loss. If a value is not finite, all of them skip the step.

    A step is ``settings.accumulation`` calls of :meth:`backward` and one of :meth:`step`. Only :meth:`step`
    synchronises processes. The gradient of the whole batch is clipped: after the mean over micro-batches and processes.
    In fp16 the loss is scaled so that small gradients do not underflow. (torch's GradScaler does not support mixed full
    and sharded gradients, and checks for overflow in each process separately.)

    Args:
        optimizers: by the name of the trained network; parameters may be full or sharded.
        settings: accumulation and learning rate schedule.
        clip: the clipping of the gradients; None for none.
        fp16: scale the loss.
        networks: the modules of the parameters. Here and after each step, their magnitude-preserving layers are
            normalised, unless ``settings.normalize_weights`` is False, and so are layers with a spectral norm.
    """

    def __init__(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer],
        settings: TrainingSettings,
        clip: Clipping | None = None,
        fp16: bool = False,
        networks: Iterable[nn.Module] = (),
    ) -> None:
        self.optimizers, self.settings, self.clip, self.fp16 = dict(optimizers), settings, clip, fp16
        modules = [module for network in networks for module in network.modules()]
        self.sharded = [module for module in modules if isinstance(module, FSDPModule)]
        self.normalized = [
            module
            for module in modules
            if isinstance(module, MPConv) and module.weight.requires_grad and settings.normalize_weights
        ]
        self.spectral = [module for module in modules if has_spectral_norm(module)]
        self._normalize_weights()
        self.loss_scale = 2.0**16 if fp16 else 1.0
        self.steps_at_scale = 0
        self.lr_factor = 1.0
        self._micro_batches: list[tuple[Losses, Tensor]] = []

    def backward(self, losses: Losses, sigma: Tensor) -> None:
        """Add the gradient of ``losses`` over one micro-batch of samples with noise levels ``sigma`` [b]."""
        if not self._micro_batches:
            self._zero_grad()
        for module in self.sharded:  # FSDP2 reduces their gradients in the backward pass
            last = len(self._micro_batches) + 1 == self.settings.accumulation
            module.set_requires_gradient_sync(last, recurse=False)
        (losses.total * (self.loss_scale / self.settings.accumulation)).backward()
        self._micro_batches.append((Losses({name: term.detach() for name, term in losses.terms.items()}), sigma))

    def step(self, iteration: int) -> dict[str, Tensor]:
        """Step with the accumulated gradients; returns the norm of each before clipping, as ``NAME_gradient``.

        Raises:
            SkippedStepError: if a loss term or a gradient is not finite in any process; no weight has changed then.
        """
        micro_batches, self._micro_batches = self._micro_batches, []
        names = list(micro_batches[0][0].terms)
        terms = torch.stack([
            torch.stack([losses.terms[name].mean for losses, _ in micro_batches]).mean() for name in names
        ])  # fmt: skip
        parameters = {name: _with_gradient(optimizer) for name, optimizer in self.optimizers.items()}
        all_parameters = [p for group in parameters.values() for p in group]
        average_over_processes([terms, *(p.grad for p in all_parameters if p.grad is not None and not is_sharded(p))])
        if self.fp16:
            for part in by_kind(all_parameters):
                torch._foreach_mul_([p.grad for p in part if p.grad is not None], 1 / self.loss_scale)
        norms = {name: total_norm(group) for name, group in parameters.items()}
        values = torch.stack([*terms.float(), *(norm.float() for norm in norms.values())])
        titles = [f"{name}_gradient" for name in norms]
        if not values.isfinite().all():  # the step's only synchronisation with the device
            raise self._skipped(dict(zip([*names, *titles], values.tolist(), strict=True)), micro_batches)
        if self.clip is not None:
            self.clip(parameters, norms)
        factor = lr_factor(self.settings, iteration * self.settings.batch_size) * self.lr_factor
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
                group["lr"] = group["initial_lr"] * factor
            optimizer.step()
        self._normalize_weights()
        self._zero_grad()  # frees their memory before another network's update
        self._grow_loss_scale()
        return {title: norm.detach() for title, norm in zip(titles, norms.values(), strict=True)}

    def discard(self) -> None:
        """Discard the accumulated gradients."""
        self._micro_batches = []
        self._zero_grad()

    def _normalize_weights(self) -> None:
        for module in self.normalized:
            module.force_magnitude()
        for layer in self.spectral:
            iterate(layer)

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def _skipped(self, values: dict[str, float], micro_batches: list[tuple[Losses, Tensor]]) -> SkippedStepError:
        terms_are_finite = all(math.isfinite(values[name]) for name in micro_batches[0][0].terms)
        overflow = self.fp16 and terms_are_finite and self.loss_scale > 1
        if overflow:
            self.loss_scale, self.steps_at_scale = self.loss_scale / 2, 0
        samples = []
        for number, (losses, sigma) in enumerate(micro_batches):
            for name, term in losses.terms.items():
                for index in (~term.losses.isfinite()).nonzero().flatten().tolist():
                    samples.append(BadSample(name, number * len(sigma) + index, sigma[index].item()))
        return SkippedStepError(values, samples, overflow)

    def _grow_loss_scale(self) -> None:
        if not self.fp16:
            return
        self.steps_at_scale += 1
        if self.steps_at_scale == _SCALE_GROWS_AFTER:
            self.loss_scale, self.steps_at_scale = self.loss_scale * 2, 0

    def state(self) -> GuardState:
        """The state of a resumed run in addition to the optimisers' state."""
        return GuardState(self.lr_factor, self.loss_scale, self.steps_at_scale)

    def load_state(self, state: GuardState) -> None:
        """Continue from a :meth:`state`; the loss scale from one of fp16 only."""
        self.lr_factor = state.lr_factor
        if self.fp16 and state.loss_scale > 1:
            self.loss_scale, self.steps_at_scale = state.loss_scale, state.steps_at_scale


def _with_gradient(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]

"""The distillation loop: updates of the critics (fake score and discriminator), then one update of the generator.

An iteration has one forward pass of the generator. The critics are trained on its detached output with new noise in
each update, or with ``fresh_latents`` on new samples in each update. A generator of several steps trains one random
step per iteration, on the output of the earlier steps. All networks are in eval mode, so that their outputs depend
only on their weights.

The randomness of an iteration is a function of the seed, the iteration and a sample's position in the global batch. It
does not depend on interruptions or on the number of processes. With accumulation each process splits its rows of the
batch into micro-batches. The generator's update then repeats the forward pass, to keep only one graph in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onestep.denoiser import Condition, micro_batches
from onestep.distillation.parts import Distillation
from onestep.distillation.report import DistillationReport
from onestep.engine.course import describe_weights
from onestep.engine.loop import train
from onestep.engine.state import TrainingState
from onestep.metrics.result import Measurement
from onestep.objectives.losses import Term
from onestep.objectives.regression import regression_loss
from onestep.seeding import BatchRandom, seeded_rng


@dataclass
class MicroBatch:
    """A micro-batch of samples [b, ...]; without accumulation, all of the process's rows of the batch."""

    x_real: Tensor | None
    condition: Condition
    noises: list[Tensor]  # of each step of the generator up to the trained one
    x_generated: Tensor  # with a graph if there is only one micro-batch


def distill(parts: Distillation) -> dict[str, Any]:
    """Run a distillation and return its summary, see :meth:`DistillationReport.final`.

    Raises:
        ValueError, SystemExit: as :func:`onestep.engine.loop.train`, :meth:`onestep.engine.run.Run.guarded` and
            :meth:`DistillationReport.final`.
    """
    run, settings = parts.run, parts.settings
    state = TrainingState(parts.saved_networks, parts.optimizers)
    report = DistillationReport(parts)

    def update(iteration: int, x_real: Tensor | None, condition: Condition) -> None:
        for diagnostics in updates(parts, iteration, run.random(settings, iteration), x_real, condition):
            run.log.add(diagnostics)
            parts.averages.after_update(parts.student)
        parts.averages.after_iteration(parts.student, iteration * settings.batch_size, settings.batch_size)

    def evaluate(iteration: int) -> list[Measurement]:
        return report.interim(state) if iteration % settings.evaluate_every == 0 else []

    with run.guarded():
        teacher = {"teacher.weights": describe_weights(parts.method.teacher)}
        train(run, state, settings, parts.data, update, evaluate, teacher)
        return report.final(state)


def updates(
    parts: Distillation, iteration: int, random: BatchRandom, x_real: Tensor | None, condition: Condition
) -> Iterator[dict[str, Tensor]]:
    """Perform the updates of one iteration on this process's rows of a batch; yields the diagnostics of each.

    Raises:
        SkippedStepError: see :meth:`onestep.engine.optimizer.GuardedOptimizer.step`.
    """
    step = exit_step(parts.run.seed, iteration, parts.student.network_evaluations)

    def generate(keep_graph: bool) -> list[MicroBatch]:
        noises = [random.normal(parts.student.noise_shape) for _ in range(step + 1)]
        return [
            MicroBatch(real, given, noise, _simulate(parts, noise, given, keep_graph))
            for real, given, *noise in _split(parts, x_real, condition, *noises)
        ]

    batches = generate(keep_graph=parts.settings.accumulation == 1)
    for _ in range(parts.critics.steps if "critics" in parts.optimizers else 0):
        yield update_critics(parts, iteration, generate(False) if parts.critics.fresh_latents else batches, random)
    yield update_generator(parts, iteration, batches, random)


def exit_step(seed: int, iteration: int, steps: int) -> int:
    """The generator step that this iteration trains, counted from 0: uniform, and the same in every process.

    The key has no rank, and is longer than those of the other random streams.
    """
    return int(torch.randint(steps, (), generator=seeded_rng(seed, 0, iteration, 1)))


def update_critics(
    parts: Distillation, iteration: int, batches: list[MicroBatch], random: BatchRandom
) -> dict[str, Tensor]:
    """One step of fake score and discriminator; returns their losses, the logits and the gradient norms."""
    optimizer, shape = parts.optimizers["critics"], batches[0].x_generated.shape[1:]
    levels_and_noise = random.sigma(parts.fake_sigma), random.normal(shape), random.normal(shape)
    diagnostics = []
    for batch, (sigma, noise, noise_real) in zip(batches, _split(parts, *levels_and_noise), strict=True):
        with parts.run.accelerator.autocast():
            losses = parts.method.critic_losses(
                batch.x_generated, batch.x_real, batch.condition, sigma, noise, noise_real
            )
        optimizer.backward(losses, sigma)
        diagnostics.append(losses.diagnostics)
    return _stack(diagnostics) | optimizer.step(iteration)


def update_generator(
    parts: Distillation, iteration: int, batches: list[MicroBatch], random: BatchRandom
) -> dict[str, Tensor]:
    """One step of the generator; returns its loss terms, the objective's diagnostics and the gradient norm."""
    method, optimizer = parts.method, parts.optimizers["generator"]
    sigmas, noises = random.sigma(parts.sigma), random.normal(batches[0].x_generated.shape[1:])
    noised = list(zip(batches, _split(parts, sigmas, noises), strict=True))
    pairs = (None, None, None) if parts.pairs is None else parts.pairs.batch(iteration)

    scale = None
    if len(batches) > 1 and method.needs_batch_mean:  # the mean weight of all micro-batches
        with parts.run.accelerator.autocast():
            ratios = [method.log_ratio(b.x_generated, b.condition, sigma, noise) for b, (sigma, noise) in noised]
        scale = method.objective.weight_scale(torch.cat(ratios))

    diagnostics, logits = [], []
    for (batch, (sigma, noise)), pair in zip(noised, _split(parts, *pairs), strict=True):
        x_generated = batch.x_generated
        if len(batches) > 1:
            x_generated = _simulate(parts, batch.noises, batch.condition, keep_graph=True)
        with parts.run.accelerator.autocast():
            losses = method.generator_losses(x_generated, batch.condition, sigma, noise, scale)
            latents, pair_condition, x_teacher = pair
            if latents is not None:
                # The first step only: the output of later steps depends on noise that is not a part of the pair.
                regression = regression_loss(parts.student.simulate([latents], pair_condition), x_teacher)
                losses.terms["regression"] = Term(regression, parts.generator.regression_weight)
                losses.diagnostics["regression_loss"] = regression
        optimizer.backward(losses, sigma)
        diagnostics.append(losses.diagnostics)
        logits += [] if losses.logit is None else [losses.logit]
    norms = optimizer.step(iteration)
    if method.normalizer is not None:
        method.normalizer.update(torch.cat(logits), sigmas)
    return _stack(diagnostics) | norms


def _simulate(parts: Distillation, noises: list[Tensor], condition: Condition, keep_graph: bool) -> Tensor:
    with torch.set_grad_enabled(keep_graph), parts.run.accelerator.autocast():
        samples: Tensor = parts.student.simulate(noises, condition)
    return samples


def _split(parts: Distillation, *values: Any) -> list[tuple[Any, ...]]:
    """The micro-batches of ``values`` [B, ...], one tuple each."""
    return list(zip(*(micro_batches(value, parts.settings.accumulation) for value in values), strict=True))


def _stack(diagnostics: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The diagnostics of all micro-batches together."""
    return {name: torch.stack([values[name].detach() for values in diagnostics]) for name in diagnostics[0]}

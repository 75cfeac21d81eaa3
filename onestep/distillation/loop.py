"""The distillation loop: updates of the critics (fake score and discriminator), then one of the generator.

One forward pass of the generator, with its graph, serves the whole iteration: the critics are trained on its detached
output under fresh noise each time, or by ``fresh_latents`` on other samples each time. A generator of several steps
trains one of them each iteration, drawn at random, on the output of the steps before it. Every network is in eval mode
throughout, so that all uses of it see the same function of its weights.

The randomness of an iteration is a function of (seed, iteration) and a sample's position in the global batch: a resumed
run is the same run, and so is one with other processes. With accumulation each process splits its part of the batch
into micro-batches; the generator's forward pass is then repeated in its update, which keeps no more than one graph.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onestep.denoiser import Condition, micro_batches
from onestep.distillation.parts import Distillation
from onestep.distillation.report import DistillationReport
from onestep.engine.optimizer import NonFiniteError, SkippedStepError
from onestep.engine.state import TrainingState
from onestep.objectives.losses import Term
from onestep.objectives.regression import regression_loss
from onestep.seeding import GlobalDraws, seeded_rng


@dataclass
class MicroBatch:
    """Samples [b, ...] that a process works on at a time; its whole part of the batch without accumulation."""

    x_real: Tensor | None
    condition: Condition
    noises: list[Tensor]  # of each step of the generator up to the one that is trained
    x_generated: Tensor  # with its graph, if there is but one micro-batch


def distill(parts: Distillation) -> dict[str, Any]:
    """Run a distillation to its end and return its summary, see :meth:`DistillationReport.final`.

    Raises:
        ValueError: for losses or gradients that stay non-finite, a disk that is full, or a process that is lost.
        SystemExit: with :data:`onestep.engine.signals.STOPPED`, if a signal asked it to stop; all is saved then.
    """
    run = parts.run
    state = TrainingState({**parts.trained_networks, "generator_ema": parts.ema.average}, parts.optimizers)
    report = DistillationReport(parts)
    run.start(state, parts.settings)
    with run.guarded():
        while state.iteration < parts.settings.iterations:
            try:
                train(parts, state, report)
            except NonFiniteError as error:
                run.roll_back(error, state, parts.settings)
    return report.final(state)


def train(parts: Distillation, state: TrainingState, report: DistillationReport) -> None:
    """The iterations from ``state.iteration`` on."""
    run, settings = parts.run, parts.settings
    for x_real, condition in run.batches(parts.data, settings, start=state.iteration):
        started = time.monotonic()
        draws = run.draws(settings, state.iteration)
        try:
            for diagnostics in updates(parts, state.iteration, draws, x_real, condition):
                run.log.add(diagnostics)
            parts.ema.update(parts.student, state.iteration * settings.batch_size, settings.batch_size)
            state.skipped_steps = 0
        except SkippedStepError as skipped:  # ends the iteration's updates
            run.skip_step(skipped, state, settings, parts.data)

        state.iteration += 1
        state.seconds += time.monotonic() - started
        run.log.end_iteration(state.iteration)
        measured = report.interim(state) if state.iteration % settings.evaluate_every == 0 else None
        run.end_iteration(state, settings, measured)
        if state.iteration == settings.iterations:
            return


def updates(
    parts: Distillation, iteration: int, draws: GlobalDraws, x_real: Tensor | None, condition: Condition
) -> Iterator[dict[str, Tensor]]:
    """The updates of one iteration on this process's part of a batch: the diagnostics of each, once it is made.

    Raises:
        SkippedStepError: see :meth:`onestep.engine.optimizer.GuardedOptimizer.step`.
    """
    step = exit_step(parts.run.seed, iteration, parts.student.network_evaluations)

    def generate(keep_graph: bool) -> list[MicroBatch]:
        noises = [draws.normal(parts.student.noise_shape) for _ in range(step + 1)]
        return [
            MicroBatch(real, given, noise, _simulate(parts, noise, given, keep_graph))
            for real, given, *noise in _split(parts, x_real, condition, *noises)
        ]

    batches = generate(keep_graph=parts.settings.accumulation == 1)
    for _ in range(parts.critics.steps if "critics" in parts.optimizers else 0):
        yield update_critics(parts, iteration, generate(False) if parts.critics.fresh_latents else batches, draws)
    yield update_generator(parts, iteration, batches, draws)


def exit_step(seed: int, iteration: int, steps: int) -> int:
    """The generator step, counted from 0, that this iteration trains: uniform, and the same in every process.

    Its key is without the rank, as the processes' batches are one, and longer than those of all other draws.
    """
    return int(torch.randint(steps, (), generator=seeded_rng(seed, 0, iteration, 1)))


def update_critics(
    parts: Distillation, iteration: int, batches: list[MicroBatch], draws: GlobalDraws
) -> dict[str, Tensor]:
    """One step of fake score and discriminator; returns their losses, the logits and the gradients' norms."""
    optimizer, shape = parts.optimizers["critics"], batches[0].x_generated.shape[1:]
    drawn = draws.sigma(parts.fake_sigma), draws.normal(shape), draws.normal(shape)
    diagnostics = []
    for batch, (sigma, noise, noise_real) in zip(batches, _split(parts, *drawn), strict=True):
        with parts.run.accelerator.autocast():
            losses = parts.method.critic_losses(
                batch.x_generated, batch.x_real, batch.condition, sigma, noise, noise_real
            )
        optimizer.backward(losses, sigma)
        diagnostics.append(losses.diagnostics)
    return _together(diagnostics) | optimizer.step(iteration)


def update_generator(
    parts: Distillation, iteration: int, batches: list[MicroBatch], draws: GlobalDraws
) -> dict[str, Tensor]:
    """One step of the generator; returns the losses of its terms, the objective's diagnostics, the gradient's norm."""
    method, optimizer = parts.method, parts.optimizers["generator"]
    sigmas, noises = draws.sigma(parts.sigma), draws.normal(batches[0].x_generated.shape[1:])
    drawn = list(zip(batches, _split(parts, sigmas, noises), strict=True))
    pairs = (None, None, None) if parts.pairs is None else parts.pairs.batch(iteration)

    scale = None
    if len(batches) > 1 and method.objective.needs_ratio:  # the weights' mean is over all micro-batches
        with parts.run.accelerator.autocast():
            ratios = [method.log_ratio(b.x_generated, b.condition, sigma, noise) for b, (sigma, noise) in drawn]
        scale = method.objective.weight_scale(torch.cat(ratios))

    diagnostics, logits = [], []
    for (batch, (sigma, noise)), pair in zip(drawn, _split(parts, *pairs), strict=True):
        x_generated = batch.x_generated
        if len(batches) > 1:
            x_generated = _simulate(parts, batch.noises, batch.condition, keep_graph=True)
        with parts.run.accelerator.autocast():
            losses = method.generator_losses(x_generated, batch.condition, sigma, noise, scale)
            latents, pair_condition, x_teacher = pair
            if latents is not None:
                # Of several steps the first: the output of later ones depends on fresh noise too, which no pair knows.
                regression = regression_loss(parts.student.simulate([latents], pair_condition), x_teacher)
                losses.terms["regression"] = Term(regression, parts.generator.regression_weight)
                losses.diagnostics["regression_loss"] = regression
        optimizer.backward(losses, sigma)
        diagnostics.append(losses.diagnostics)
        logits += [] if losses.logit is None else [losses.logit]
    norms = optimizer.step(iteration)
    if method.normalizer is not None:
        method.normalizer.update(torch.cat(logits), sigmas)
    return _together(diagnostics) | norms


def _simulate(parts: Distillation, noises: list[Tensor], condition: Condition, keep_graph: bool) -> Tensor:
    with torch.set_grad_enabled(keep_graph), parts.run.accelerator.autocast():
        samples: Tensor = parts.student.simulate(noises, condition)
    return samples


def _split(parts: Distillation, *values: Any) -> list[tuple[Any, ...]]:
    """The micro-batches of ``values`` [B, ...], a tuple each."""
    return list(zip(*(micro_batches(value, parts.settings.accumulation) for value in values), strict=True))


def _together(diagnostics: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The micro-batches' diagnostics as those of one batch."""
    return {name: torch.stack([values[name].detach() for values in diagnostics]) for name in diagnostics[0]}

"""The distillation loop: updates of the critics (fake score and discriminator), then one update of the generator.

The critics are trained on the generator's detached output, with new noise in each update. The order of the updates and
the samples of each are those of :mod:`onestep.distillation.schedule`. A generator of several steps trains one random
step per iteration, on the output of the earlier steps. All networks are in eval mode, so that their outputs depend
only on their weights; but for the dropout of a network in its own update, if that is set.

The randomness of an iteration is a function of the seed, the iteration and a sample's position in the global batch. It
does not depend on interruptions or on the number of processes; that of dropout depends on the process. With
accumulation each process splits its rows of the batch into micro-batches. The generator's update then repeats the
forward pass, to keep only one graph in memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from onestep.data.augmentation import EDMAugmentation
from onestep.data.dataset import Batch
from onestep.denoiser import Condition
from onestep.distillation.parts import Distillation
from onestep.distillation.report import DistillationReport
from onestep.distillation.schedule import Update, batches_per_iteration
from onestep.distillation.settings import Weights
from onestep.engine.averages import move
from onestep.engine.course import describe_weights
from onestep.engine.loop import train
from onestep.engine.optimizer import SkippedStepError
from onestep.engine.state import TrainingState
from onestep.metrics.result import Measurement
from onestep.models.dropout import dropout
from onestep.models.freezing import describe_trained
from onestep.models.steps import set_step
from onestep.noise import Noised
from onestep.objectives.losses import Term
from onestep.objectives.regression import regression_loss
from onestep.objectives.terms import TeacherPair, TermInputs
from onestep.seeding import BatchRandom, seeded_rng

_OF_DROPOUT = 3  # the random stream of dropout; 1 and 2 are those of the exit step and of conditions


@dataclass
class MicroBatch:
    """A micro-batch of samples [b, ...]; without accumulation, all of the process's rows of the batch."""

    x_real: Tensor | None
    condition_real: Condition
    condition: Condition
    noises: list[Tensor]  # of each step of the generator up to the trained one
    x_generated: Tensor  # with a graph if there is only one micro-batch and the generator is trained on it


def distill(parts: Distillation) -> dict[str, Any]:
    """Run a distillation and return its summary, see :meth:`DistillationReport.final`.

    Raises:
        ValueError, SystemExit: as :func:`onestep.engine.loop.train`, :meth:`onestep.engine.run.Run.guarded` and
            :meth:`DistillationReport.final`.
    """
    run, settings = parts.run, parts.settings
    state = TrainingState(parts.saved_networks, parts.optimizers)
    report = DistillationReport(parts)

    def update(iteration: int, data: Sequence[Batch]) -> None:
        for diagnostics in updates(parts, iteration, run.random(settings, iteration), data):
            run.log.add(diagnostics)
            parts.averages.after_update(parts.student)
        parts.averages.after_iteration(parts.student, iteration * settings.batch_size, settings.batch_size)

    def evaluate(iteration: int) -> list[Measurement]:
        return report.interim(state)

    with run.guarded():
        if not all(parameter.requires_grad for parameter in parts.student.parameters()):
            run.accelerator.print(f"trained parameters of the generator: {describe_trained(parts.student)}")
        frozen = {"teacher": parts.method.teacher, "discriminator.network": parts.method.pretrained}
        for name, term in parts.terms.items():
            frozen |= {f"terms.{name}.{setting}": network for setting, network in term.networks.items()}
        weights = {f"{name}.weights": describe_weights(one) for name, one in frozen.items() if one is not None}
        train(run, state, settings, parts.data, update, evaluate, weights, batches_per_iteration(parts.updates))
        return report.final(state)


def updates(
    parts: Distillation, iteration: int, random: BatchRandom, data: Sequence[Batch]
) -> Iterator[dict[str, Tensor]]:
    """Perform the updates of one iteration; yields the diagnostics of each.

    Args:
        parts: of the distillation.
        iteration: its number.
        random: the iteration's random numbers.
        data: this process's rows of each batch of the iteration, see :func:`batches_per_iteration`.

    Raises:
        SkippedStepError: see :meth:`onestep.engine.optimizer.GuardedOptimizer.step`.
    """
    weights = parts.generator.weights(iteration * parts.settings.batch_size)
    progress = iteration / parts.settings.iterations
    step = exit_step(parts.run.seed, iteration, parts.student.network_evaluations)
    sigma, fake_sigma = (law.after(progress).at_step(step) for law in (parts.sigma, parts.fake_sigma))
    parts = replace(parts, sigma=sigma, fake_sigma=fake_sigma)
    set_step(parts.method.fake_score, step)
    number, batches = -1, list[MicroBatch]()
    for position, update in enumerate(parts.updates):
        if update.of == "generator" and weights is None:
            continue
        if update.samples != number:
            number = update.samples
            trainer = Update("generator", number)
            trained_at = parts.updates.index(trainer) if weights is not None and trainer in parts.updates else None
            batches = _generate(parts, iteration, step, random, data[number], trained_at)
        try:
            if update.of == "critics":
                diagnostics = update_critics(parts, iteration, batches, random, position)
            else:
                assert weights is not None
                diagnostics = update_generator(parts, iteration, batches, random, position, weights)
        except SkippedStepError as error:
            error.batch = number
            raise
        yield diagnostics


def _generate(
    parts: Distillation, iteration: int, step: int, random: BatchRandom, data: Batch, trained_at: int | None
) -> list[MicroBatch]:
    """Samples of the generator up to its step ``step``, with the conditions of the ``data`` or uniform classes.

    They have the dropout of the generator's update at the position ``trained_at``; None for samples without one.
    """
    x_real, condition = data
    noises = [random.normal(parts.student.noise_shape) for _ in range(step + 1)]
    given = parts.condition_of_samples(condition, random)
    keep_graph = trained_at is not None and parts.settings.accumulation == 1
    batches = []
    for number, (real, of_real, of_generated, *noise) in enumerate(parts.split(x_real, condition, given, *noises)):
        with _dropout(parts, iteration, trained_at, number):
            x_generated = parts.simulate(noise, of_generated, keep_graph)
        batches.append(MicroBatch(real, of_real, of_generated, noise, x_generated))
    return batches


def exit_step(seed: int, iteration: int, steps: int) -> int:
    """The generator step that this iteration trains, counted from 0: uniform, and the same in every process.

    The key has no rank, and is longer than those of the other random streams.
    """
    return int(torch.randint(steps, (), generator=seeded_rng(seed, 0, iteration, 1)))


def update_critics(
    parts: Distillation, iteration: int, batches: list[MicroBatch], random: BatchRandom, position: int
) -> dict[str, Tensor]:
    """One step of fake score and discriminator; returns their losses, the logits and the gradient norms.

    ``position`` is the update's among those of the iteration, which decides the masks of its dropout.
    """
    optimizer, critics = parts.optimizers["critics"], parts.critics
    noise_at = partial(_noise_at, parts, random, batches[0].x_generated.shape[1:])
    sigma = random.sigma(parts.fake_sigma)
    noised = noised_real = noise_at(sigma)
    if critics.real_noise != "same":
        noised_real = noise_at(random.sigma(parts.fake_sigma) if critics.real_noise == "own_level" else sigma)
    noised_generated: Sequence[Noised | None] = [None] * len(batches)
    if critics.generated_noise == "own_level":
        noised_generated = noise_at(random.sigma(parts.fake_sigma))
    batches = batches if parts.augment is None else _augmented(parts, parts.augment, random, batches)
    diagnostics = []
    micro_batches = zip(batches, noised, noised_real, noised_generated, _numbers(parts, random, 2), strict=True)
    for number, (batch, noise, real, generated, numbers) in enumerate(micro_batches):
        with _dropout(parts, iteration, position, number):
            with parts.run.accelerator.autocast():
                losses = parts.method.critic_losses(
                    batch.x_generated, batch.x_real, batch.condition, noise, real, generated, batch.condition_real,
                    numbers,
                )  # fmt: skip
            optimizer.backward(losses, noise.sigma)
        diagnostics.append(losses.diagnostics)
    return _stack(diagnostics) | optimizer.step(iteration)


def _augmented(
    parts: Distillation, augment: EDMAugmentation, random: BatchRandom, batches: list[MicroBatch]
) -> list[MicroBatch]:
    """The ``batches`` of augmented images with their labels; generated and real ones have transforms of their own."""
    generated = parts.split(*augment(torch.cat([batch.x_generated.detach() for batch in batches]), random))
    real: list[Any] = [None] * len(batches)
    if parts.method.discriminator is not None:
        images = torch.cat([batch.x_real for batch in batches if batch.x_real is not None])
        real = parts.split(*augment(images, random))
    augmented = []
    for batch, (x_generated, labels), of_real in zip(batches, generated, real, strict=True):
        condition = batch.condition | {"augment_labels": labels}
        x_real, condition_real = batch.x_real, batch.condition_real
        if of_real is not None:
            x_real, condition_real = of_real[0], condition_real | {"augment_labels": of_real[1]}
        augmented.append(MicroBatch(x_real, condition_real, condition, batch.noises, x_generated))
    return augmented


def update_generator(
    parts: Distillation, iteration: int, batches: list[MicroBatch], random: BatchRandom, position: int, weights: Weights
) -> dict[str, Tensor]:
    """One step of the generator; returns its loss terms, the objective's diagnostics and the gradient norm.

    ``position`` as for :func:`update_critics`.
    """
    method = replace(parts.method, objective_weight=weights.objective, gan_weight=weights.gan)
    optimizer, shape = parts.optimizers["generator"], batches[0].x_generated.shape[1:]
    noised = _noise_at(parts, random, shape, random.sigma(parts.sigma))
    noised_gan: Sequence[Noised | None] = [None] * len(batches)
    if parts.generator.gan_level == "own":
        noised_gan = _noise_at(parts, random, shape, random.sigma(parts.fake_sigma))
    pairs = (None, None, None) if parts.pairs is None else parts.pairs.batch(iteration)
    noised_terms = parts.noise_of_terms(random, shape, iteration, step=len(batches[0].noises) - 1)

    scale = None
    if len(batches) > 1 and method.needs_batch_mean:  # the mean weight of all micro-batches
        with parts.run.generator_autocast():
            ratios = [method.log_ratio(b.x_generated, b.condition, n) for b, n in zip(batches, noised, strict=True)]
        scale = method.objective.weight_scale(torch.cat(ratios))

    diagnostics, logits = [], []
    of_batches = noised, noised_gan, noised_terms, parts.split(*pairs), _numbers(parts, random)
    micro_batches = zip(batches, *of_batches, strict=True)
    for number, (batch, noise, noise_gan, noise_terms, pair, numbers) in enumerate(micro_batches):
        with _dropout(parts, iteration, position, number):
            x_generated = batch.x_generated
            if len(batches) > 1:  # the same samples, with a graph
                x_generated = parts.simulate(batch.noises, batch.condition, keep_graph=True)
            with parts.run.generator_autocast():
                losses = method.generator_losses(x_generated, batch.condition, noise, scale, noise_gan, numbers)
                of_teacher = None if parts.pairs is None else TeacherPair(*pair)
                if of_teacher is not None and parts.generator.regression_weight > 0:
                    # The first step only: the output of later steps depends on noise that is not a part of the pair.
                    x_student = parts.student.simulate([of_teacher.latents], of_teacher.condition)
                    regression = regression_loss(x_student, of_teacher.x_teacher)
                    losses.terms["regression"] = Term(regression, parts.generator.regression_weight)
                    losses.diagnostics["regression_loss"] = regression
                for name, term in parts.terms.items():
                    of_term = term.losses(TermInputs(
                        parts.student, x_generated, batch.x_real, batch.condition_real, of_teacher, method.teacher,
                        batch.condition, noise_terms.get(name),
                    ))  # fmt: skip
                    losses.terms[name] = Term(of_term, term.weight)
                    losses.diagnostics[f"{name}_loss"] = of_term
            optimizer.backward(losses, noise.sigma)
        diagnostics.append(losses.diagnostics)
        logits += [] if losses.logit is None else [losses.logit]
    norms = optimizer.step(iteration)
    if parts.critics.alignment and method.fake_score is not None:
        move(method.fake_score, parts.student.denoiser, 1 - parts.critics.alignment)
    if method.normalizer is not None and logits:
        method.normalizer.update(torch.cat(logits), torch.cat([noise.sigma for noise in noised]))
    return _stack(diagnostics) | norms


def _noise_at(parts: Distillation, random: BatchRandom, shape: Sequence[int], sigma: Tensor) -> list[Noised]:
    """New noise at the levels ``sigma`` [B] for samples of ``shape``, by micro-batch."""
    return [Noised(*of_batch) for of_batch in parts.split(sigma, random.normal(shape))]


def _numbers(parts: Distillation, random: BatchRandom, *shape: int) -> list[Tensor | None]:
    """The numbers [b, *shape, K] of the discriminator's augmentation, by micro-batch; None without one."""
    augment = parts.method.view.augment
    return [of_batch for (of_batch,) in parts.split(augment and random.uniform((*shape, augment.numbers)))]


@contextmanager
def _dropout(parts: Distillation, iteration: int, position: int | None, micro_batch: int) -> Iterator[None]:
    """Context of a micro-batch in the update at ``position``, in which the trained network's dropout is active.

    It includes the backward pass, which may compute activations again. The masks are a function of the arguments and of
    this process, so that a repeated pass has the same.
    """
    of = None if position is None else parts.updates[position].of
    probability = {None: 0.0, "generator": parts.generator.dropout, "critics": parts.critics.dropout}[of]
    if position is None or not probability:
        yield
        return
    key = (parts.run.seed, parts.run.accelerator.process_index, iteration, _OF_DROPOUT, position, micro_batch)
    torch.manual_seed(seeded_rng(*key).initial_seed())  # dropout uses torch's global rng
    networks: Any = parts.student.networks if of == "generator" else [parts.method.fake_score]
    with dropout(networks, active=True):
        yield


def _stack(diagnostics: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The diagnostics of all micro-batches together."""
    return {name: torch.stack([values[name].detach() for values in diagnostics]) for name in diagnostics[0]}

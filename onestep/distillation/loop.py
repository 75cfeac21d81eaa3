"""The distillation loop: ``fake_score_steps`` updates of fake score and discriminator, then one of the generator.

One forward pass of the generator, with its graph, serves the whole iteration: the fake score is trained on its detached
output under fresh noise each time, or by ``training.fresh_latents`` on other images each time. Of a generator of
several steps, each iteration trains one, drawn at random, on what the steps before it make. Every network is in eval
mode throughout, so that all see the same function of their weights.

All randomness of an iteration comes from (seed, iteration) and a sample's place in the global batch: a resumed run is
the same run, and so is one with other processes. With ``training.accumulation`` each process works off its share in
rounds; the generator's forward pass is then made once more for its update, rather than keeping the graphs of all
rounds.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from onestep.denoiser import Condition, concatenate_conditions, micro_batches
from onestep.distillation.build import Distillation, build_distillation
from onestep.distillation.report import DistillationReport
from onestep.engine.optimizer import NonFiniteError, SkippedStepError, Term, denoising_loss
from onestep.engine.run import Run
from onestep.engine.state import TrainingState
from onestep.noise import add_noise
from onestep.objectives.adversarial import discriminator_loss, generator_loss
from onestep.objectives.regression import regression_loss
from onestep.seeding import GlobalDraws, seeded_rng


@dataclass
class Round:
    """The samples [b, ...] that a process works on at a time; all of its share, without accumulation."""

    x_real: Tensor | None
    condition: Condition
    noises: list[Tensor]  # of each step of the generator up to the one that is trained
    x_generated: Tensor  # with its graph, if there is but one round


def distill(config: DictConfig) -> dict[str, Any]:
    """Run the configured distillation to its end and return its summary, see :class:`DistillationReport`.

    Raises:
        ValueError: before training, for parts that do not fit each other; during it, for losses or gradients that stay
            non-finite, a disk that is full, or a process that is lost.
        SystemExit: with :data:`onestep.engine.signals.STOPPED`, if a signal asked it to stop; all is saved then.
    """
    run = Run(config)
    parts = build_distillation(config, run.accelerator)
    state = TrainingState({**parts.trained_networks, "generator_ema": parts.ema.average}, parts.optimizers)
    report = DistillationReport(run, parts)
    run.start(state, parts.settings)
    with run.guarded():
        while state.iteration < parts.settings.iterations:
            try:
                train(run, parts, state, report)
            except NonFiniteError as error:
                run.roll_back(error, state, parts.settings)
    return report.final(state)


def train(run: Run, parts: Distillation, state: TrainingState, report: DistillationReport) -> None:
    """The iterations from ``state.iteration`` on."""
    settings = parts.settings
    for x_real, condition in run.batches(parts.data, settings, start=state.iteration):
        started = time.monotonic()
        draws = run.draws(settings, state.iteration)
        try:
            for diagnostics in updates(parts, run.config.seed, state.iteration, draws, x_real, condition):
                run.log.add(diagnostics)
            parts.ema.update(parts.generator, state.iteration * settings.batch_size, settings.batch_size)
            state.skipped_steps = 0
        except SkippedStepError as refusal:  # ends the iteration's updates
            run.skip_step(refusal, state, settings, parts.data)

        state.iteration += 1
        state.seconds += time.monotonic() - started
        run.log.end_iteration(state.iteration)
        figures = report.interim(state) if state.iteration % settings.evaluate_every == 0 else {}
        run.end_iteration(state, settings, figures)
        if state.iteration == settings.iterations:
            return


def updates(
    parts: Distillation, seed: int, iteration: int, draws: GlobalDraws, x_real: Tensor | None, condition: Condition
) -> Iterator[dict[str, Tensor]]:
    """The updates of one iteration on this process's share of a batch: the diagnostics of each, once it is made.

    Raises:
        SkippedStepError: see :meth:`onestep.engine.optimizer.GuardedOptimizer.step`.
    """
    settings = parts.settings
    exit_step = draw_exit_step(seed, iteration, parts.generator.network_evaluations)

    def make(keep_graph: bool) -> list[Round]:
        noises = [draws.normal(parts.space.image_shape) for _ in range(exit_step + 1)]
        return generate(parts, x_real, condition, noises, keep_graph)

    rounds = make(keep_graph=settings.accumulation == 1)
    for _ in range(settings.fake_score_steps if "fake_score" in parts.optimizers else 0):
        fakes = make(keep_graph=False) if settings.fresh_latents else rounds
        yield update_fake_score(parts, iteration, fakes, draws)
    yield update_generator(parts, iteration, rounds, draws)


def draw_exit_step(seed: int, iteration: int, steps: int) -> int:
    """The generator step, counted from 0, that this iteration trains: uniform, and the same in every process.

    Its key is without the rank, as the processes' batches are one, and longer than those of all other draws.
    """
    return int(torch.randint(steps, (), generator=seeded_rng(seed, 0, iteration, 1)))


def generate(
    parts: Distillation, x_real: Tensor | None, condition: Condition, noises: list[Tensor], keep_graph: bool
) -> list[Round]:
    """What the generator makes of ``noises``, in as many rounds as the settings say."""
    count = parts.settings.accumulation
    rounds = []
    shares = (micro_batches(value, count) for value in (x_real, condition, *noises))
    for images, labels, *noise in zip(*shares, strict=True):
        with torch.set_grad_enabled(keep_graph), parts.accelerator.autocast():
            rounds.append(Round(images, labels, noise, parts.generator.simulate(noise, labels)))
    return rounds


def update_fake_score(
    parts: Distillation, iteration: int, rounds: list[Round], draws: GlobalDraws
) -> dict[str, Tensor]:
    """One step of the fake score (denoising score matching on generated images) and of the discriminator (logistic).

    Both see the same noised images. Returns diagnostics: the two losses, the logits and the gradient's norm.
    """
    optimizer = parts.optimizers["fake_score"]
    shape = parts.space.image_shape
    drawn = (draws.sigma(parts.fake_sigma), draws.normal(shape), draws.normal(shape))
    diagnostics = []
    for samples, sigma, noise, noise_real in zip(rounds, *(x.chunk(len(rounds)) for x in drawn), strict=True):
        terms, round_diagnostics = _judges_losses(parts, samples, sigma, noise, noise_real)
        optimizer.backward(terms, sigma)
        diagnostics.append(round_diagnostics)
    return _together(diagnostics) | {"fake_score_gradient": optimizer.step(iteration)}


def _judges_losses(
    parts: Distillation, samples: Round, sigma: Tensor, noise: Tensor, noise_real: Tensor
) -> tuple[dict[str, Term], dict[str, Tensor]]:
    """The terms of the fake score and the discriminator, and diagnostics."""
    judges, condition, x_generated = parts.judges, samples.condition, samples.x_generated.detach()
    x_sigma = add_noise(x_generated, noise, sigma)
    terms: dict[str, Term] = {}
    diagnostics: dict[str, Tensor] = {}
    with parts.accelerator.autocast():
        features: Tensor | None = None
        if judges.fake_score is not None:
            if judges.discriminator_host is judges.fake_score:
                x0_fake, features = judges.fake_score(x_sigma, sigma, condition, outputs="both")
            else:
                x0_fake = judges.fake_score(x_sigma, sigma, condition)
            losses = denoising_loss(judges.fake_score, x0_fake, x_generated, sigma)
            terms["fake score"] = Term(losses)
            diagnostics["fake_score_loss"] = losses
        if judges.discriminator is not None and judges.discriminator_host is not None:
            host = judges.discriminator_host
            assert samples.x_real is not None  # a discriminator without images was refused when the run was built
            x_real_sigma = add_noise(samples.x_real, noise_real, sigma)
            if features is not None:  # the fake score's, from the pass above
                features_real = host(x_real_sigma, sigma, condition, outputs="features")
                features = torch.cat([features_real, features])
            else:
                both_conditions = concatenate_conditions(condition, condition)
                with torch.no_grad():
                    features = host(
                        torch.cat([x_real_sigma, x_sigma]),
                        torch.cat([sigma, sigma]),
                        both_conditions,
                        outputs="features",
                    )
            logit_real, logit_generated = judges.discriminator(features).chunk(2)
            losses = discriminator_loss(logit_real, logit_generated)
            terms["discriminator"] = Term(losses, parts.settings.discriminator_weight)
            diagnostics |= {"discriminator_loss": losses, "logit_real": logit_real, "logit_generated": logit_generated}
    return terms, diagnostics


def update_generator(parts: Distillation, iteration: int, rounds: list[Round], draws: GlobalDraws) -> dict[str, Tensor]:
    """One step of the generator: the objective and the adversarial term, from one pass of each judge; the regression.

    Returns diagnostics: the losses of each term, the objective's own and the gradient's norm.
    """
    optimizer, judges, count = parts.optimizers["generator"], parts.judges, len(rounds)
    drawn = (draws.sigma(parts.sigma), draws.normal(parts.space.image_shape))
    sigmas, noises = (x.chunk(count) for x in drawn)
    pairs = (None, None, None) if parts.pairs is None else parts.pairs.batch(iteration)
    # The objective's batch statistics are those of all rounds, which the single ones cannot know.
    log_ratios = None
    if count > 1 and parts.objective.needs_ratio:
        with parts.accelerator.autocast():
            log_ratios = torch.cat([
                judges.log_ratio(samples.x_generated, noise, sigma, samples.condition)
                for samples, noise, sigma in zip(rounds, noises, sigmas, strict=True)
            ])  # fmt: skip
    diagnostics, logits = [], []
    for samples, sigma, noise, *pair in zip(
        rounds, sigmas, noises, *(micro_batches(x, count) for x in pairs), strict=True
    ):
        terms, round_diagnostics, logit = _generator_losses(parts, samples, sigma, noise, pair, log_ratios)
        optimizer.backward(terms, sigma)
        diagnostics.append(round_diagnostics)
        logits.append(logit)
    norm = optimizer.step(iteration)
    if judges.normalizer is not None:
        judges.normalizer.update(torch.cat([logit for logit in logits if logit is not None]), drawn[0])
    return _together(diagnostics) | {"generator_gradient": norm}


def _generator_losses(
    parts: Distillation, samples: Round, sigma: Tensor, noise: Tensor, pair: list[Any],
    log_ratios: Tensor | None,
) -> tuple[dict[str, Term], dict[str, Tensor], Tensor | None]:  # fmt: skip
    """The generator's terms, diagnostics, and the discriminator's logits."""
    settings, condition, x_generated = parts.settings, samples.condition, samples.x_generated
    with parts.accelerator.autocast():
        if not x_generated.requires_grad:
            x_generated = parts.generator.simulate(samples.noises, condition)
        evaluation, logit = parts.judges.evaluate(
            parts.objective, x_generated, noise, sigma, condition, adversarial=settings.gan_weight > 0
        )
        losses, diagnostics = parts.objective(replace(evaluation, log_ratio_of_batch=log_ratios))
        terms = {"objective": Term(losses)}
        if settings.gan_weight > 0 and logit is not None:
            gan_losses = generator_loss(logit)
            terms["adversarial"] = Term(gan_losses, settings.gan_weight)
            diagnostics["adversarial_loss"] = gan_losses
        pair_latents, pair_condition, x_teacher = pair
        if pair_latents is not None and x_teacher is not None:
            # Of several steps the first: what later ones make depends on fresh noise too, which no pair knows.
            x_paired = parts.generator.simulate([pair_latents], pair_condition)
            regression_losses = regression_loss(x_paired, x_teacher)
            terms["regression"] = Term(regression_losses, settings.regression_weight)
            diagnostics["regression_loss"] = regression_losses
    diagnostics["loss"] = losses
    return terms, diagnostics, None if logit is None else logit.detach()


def _together(diagnostics: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The rounds' diagnostics as those of one batch."""
    return {name: torch.stack([values[name].detach() for values in diagnostics]) for name in diagnostics[0]}

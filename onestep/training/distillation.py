"""The distillation loop: ``fake_score_steps`` updates of fake score and discriminator, then one of the generator.

One forward pass of the generator, with its graph, serves the whole cycle: the fake score is trained on its detached
output under fresh noise each time. Of a generator of several steps, each cycle trains one, drawn at random, on what the
steps before it make. Every network is in eval mode throughout, so that all see the same function of their weights. All
randomness of a cycle comes from (seed, rank, cycle), so that a resumed run is the same run.
"""

import time
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from onestep.denoiser import Condition, concatenate_conditions
from onestep.noise import add_noise
from onestep.objectives.adversarial import discriminator_loss, generator_loss
from onestep.objectives.regression import regression_loss
from onestep.seeding import seeded_generator
from onestep.training.build import Distillation, build_distillation
from onestep.training.ema import EMA
from onestep.training.report import DistillationReport
from onestep.training.run import Run
from onestep.training.state import TrainingState
from onestep.training.steps import denoising_loss, optimizer_step


def distill(config: DictConfig) -> dict[str, Any]:
    """Run the configured distillation to its end and return its summary, see :class:`DistillationReport`.

    Raises:
        ValueError: before training, for parts that do not fit each other; during it, for a non-finite loss or gradient.
    """
    run = Run(config)
    parts = build_distillation(config, run.accelerator)
    settings = parts.settings
    ema = EMA(parts.generator, settings.ema_halflife, settings.ema_rampup)
    state = TrainingState({**parts.trained_networks, "generator_ema": ema.average}, parts.optimizers)
    report = DistillationReport(run, parts, ema.average)
    run.start(state, settings)

    for x_real, condition in run.batches(parts.data, settings, start=state.cycle):
        if state.cycle == settings.cycles:
            break
        started = time.monotonic()
        random = seeded_generator(config.seed, run.accelerator.process_index, state.cycle, device=x_real.device)

        exit_step = draw_exit_step(config.seed, state.cycle, parts.generator.network_evaluations)
        # One draw for the whole batch: sample by sample, as in drawing, it takes a Python loop over the batch.
        noises = [_noise_like(x_real, random) for _ in range(exit_step + 1)]
        with run.accelerator.autocast():
            x_generated = parts.generator.simulate(noises, condition)
        for _ in range(settings.fake_score_steps if "fake_score" in parts.optimizers else 0):
            run.log.add(update_fake_score(parts, state.cycle, x_generated.detach(), x_real, condition, random))
        run.log.add(update_generator(parts, state.cycle, x_generated, condition, random))
        ema.update(parts.generator, state.cycle * settings.batch_size, settings.batch_size)

        state.cycle += 1
        state.seconds += time.monotonic() - started
        run.log.end_cycle(state.cycle)
        if state.cycle % settings.evaluate_every == 0:
            report.interim(state)
        if state.cycle % settings.checkpoint_every == 0 or state.cycle == settings.cycles:
            run.save(state, settings)
    return report.final(state)


def draw_exit_step(seed: int, cycle: int, steps: int) -> int:
    """Which of the generator's ``steps``, counted from 0, this cycle trains: each as often, the same in every process.

    Its key is without the rank, as the processes' batches are one, and longer than those of all other draws.
    """
    return int(torch.randint(steps, (), generator=seeded_generator(seed, 0, cycle, 1)))


def update_fake_score(
    parts: Distillation,
    cycle: int,
    x_generated: Tensor,
    x_real: Tensor,
    condition: Condition,
    random: torch.Generator,
) -> dict[str, Tensor]:
    """One step of the fake score (denoising score matching on generated images) and of the discriminator (logistic).

    Both see the same noised images. Returns diagnostics: the two losses [B], the logits and the gradient's norm.
    """
    judges, settings = parts.judges, parts.settings
    sigma = parts.fake_sigma.sample(len(x_generated), random)
    x_sigma = add_noise(x_generated, _noise_like(x_generated, random), sigma)
    x_real_sigma = add_noise(x_real, _noise_like(x_real, random), sigma)
    terms: dict[str, Tensor] = {}
    diagnostics: dict[str, Tensor] = {}

    with parts.accelerator.autocast():
        features: Tensor | None = None
        if judges.fake_score is not None:
            if judges.discriminator_host is judges.fake_score:
                x0_fake, features = judges.fake_score(x_sigma, sigma, condition, outputs="both")
            else:
                x0_fake = judges.fake_score(x_sigma, sigma, condition)
            losses = denoising_loss(judges.fake_score, x0_fake, x_generated, sigma)
            terms["fake score"] = losses.mean()
            diagnostics["fake_score_loss"] = losses
        if judges.discriminator is not None and judges.discriminator_host is not None:
            host = judges.discriminator_host
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
            terms["discriminator"] = settings.discriminator_weight * losses.mean()
            diagnostics |= {"discriminator_loss": losses, "logit_real": logit_real, "logit_generated": logit_generated}

    optimizer = parts.optimizers["fake_score"]
    diagnostics["fake_score_gradient"] = optimizer_step(optimizer, terms, settings, cycle)
    return diagnostics


def update_generator(
    parts: Distillation, cycle: int, x_generated: Tensor, condition: Condition, random: torch.Generator
) -> dict[str, Tensor]:
    """One step of the generator: the objective and the adversarial term, from one pass of each judge; the regression.

    Returns diagnostics: the losses [B] of each term, the objective's own and the gradient's norm.
    """
    settings = parts.settings
    sigma = parts.sigma.sample(len(x_generated), random)
    with parts.accelerator.autocast():
        evaluation, logit = parts.judges.evaluate(
            parts.objective,
            x_generated,
            _noise_like(x_generated, random),
            sigma,
            condition,
            adversarial=settings.gan_weight > 0,
        )
        losses, diagnostics = parts.objective(evaluation)
        terms = {"objective": losses.mean()}
        if settings.gan_weight > 0 and logit is not None:
            gan_losses = generator_loss(logit)
            terms["adversarial"] = settings.gan_weight * gan_losses.mean()
            diagnostics["adversarial_loss"] = gan_losses
        if parts.pairs is not None:
            pair_latents, pair_condition, x_teacher = parts.pairs.batch(cycle)
            # Of several steps the first: what later ones make depends on fresh noise too, which no pair knows.
            x_paired = parts.generator.simulate([pair_latents], pair_condition)
            regression_losses = regression_loss(x_paired, x_teacher)
            terms["regression"] = settings.regression_weight * regression_losses.mean()
            diagnostics["regression_loss"] = regression_losses
    diagnostics["loss"] = losses
    diagnostics["generator_gradient"] = optimizer_step(parts.optimizers["generator"], terms, settings, cycle)
    return diagnostics


def _noise_like(x: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=random, device=x.device)

"""Pretraining of what a distillation starts from: a teacher."""

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from onestep.build.evaluation import build_evaluator, reference_of, sample_space
from onestep.config import instantiate
from onestep.data.augmentation import EDMAugmentation
from onestep.data.dataset import ImageDataset, has_images
from onestep.denoiser import micro_batches
from onestep.distillation.build import prepare_networks
from onestep.distillation.checks import check_fit
from onestep.engine.ema import EMA
from onestep.engine.log import read_log
from onestep.engine.optimizer import (
    GuardedOptimizer,
    NonFiniteError,
    SkippedStepError,
    Term,
    denoising_loss,
)
from onestep.engine.run import Run
from onestep.engine.settings import EvaluationSettings, TrainingSettings
from onestep.engine.shard import full_state_dict
from onestep.engine.state import TrainingState
from onestep.evaluation.evaluate import Scorer, check_evaluation
from onestep.metrics.evaluator import Evaluator
from onestep.models.base import DenoiserNetwork
from onestep.models.generator import load_denoiser
from onestep.noise import SigmaDistribution, add_noise
from onestep.reports.plots import save_curves, save_samples
from onestep.samplers import Sampler
from onestep.seeding import seeded_rng


@dataclass
class Pretraining:
    """Everything that the loop works with."""

    settings: TrainingSettings
    evaluation: EvaluationSettings
    data: ImageDataset
    sigma: SigmaDistribution
    network: DenoiserNetwork
    ema: EMA[DenoiserNetwork]
    optimizer: GuardedOptimizer
    sampler: Sampler
    evaluator: Evaluator
    augment: EDMAugmentation | None

    def scorer(self, run: Run) -> Scorer:
        """What scores in ``run``."""
        return Scorer(run, self.evaluator, self.evaluation, sample_space(self.network, self.data))


def pretrain(config: DictConfig) -> dict[str, Any]:
    """Train a denoiser by EDM's loss (arXiv 2206.00364, eq. 8) and keep the average that had the least FID.

    The folder ``teacher`` of the run then loads with ``teacher=local teacher.path=...``.

    Returns:
        ``teacher``, the kept one's metrics with ``network_evaluations``, ``samples`` and ``samples_per_second``;
        ``images_seen`` until it was kept; ``seconds`` of the whole training; ``figures``, a record of each metric;
        empty outside the main process.

    Raises:
        ValueError, SystemExit: as :func:`onestep.distillation.loop.distill`.
    """
    run = Run(config)
    parts = _build(config, run)
    state = TrainingState({"network": parts.network, "network_ema": parts.ema.average}, {"network": parts.optimizer})
    run.start(state, parts.settings)
    with run.guarded():
        while state.iteration < parts.settings.iterations:
            try:
                _train(run, parts, state)
            except NonFiniteError as error:
                run.roll_back(error, state, parts.settings)
    run.log.close()
    return _finish(run, parts, state)


def _build(config: DictConfig, run: Run) -> Pretraining:
    settings: TrainingSettings = instantiate(config.training)
    settings.share_of(run.accelerator.num_processes)
    data: ImageDataset | None = instantiate(config.data)
    if data is None or not has_images(data):
        raise ValueError("a pretraining needs images to train on: choose data=..., such as data=image_folder")
    torch.manual_seed(seeded_rng(config.seed).initial_seed())
    network: DenoiserNetwork = instantiate(config.network).to(run.device).train()
    check_fit(network, data)
    augment: EDMAugmentation | None = instantiate(config.get("augment"))
    taken = getattr(network, "augment_dim", 0)
    if augment is not None and taken != augment.label_dim:
        raise ValueError(
            f"augment=...: the network must take its {augment.label_dim} labels, and takes {taken}: set "
            f"network.options.augment_dim={augment.label_dim}"
        )
    ema = EMA(network, settings.ema_halflife, settings.ema_rampup)
    prepare_networks(config, run.device, trained=[network], others=[ema.average])
    optimizer = instantiate(config.optimizer.teacher)(list(network.parameters()))
    evaluation: EvaluationSettings = instantiate(config.evaluation)
    evaluator = build_evaluator(config, config.get("features"), reference_of(data), run.device)
    check_evaluation(evaluator, evaluation, run.accelerator.num_processes)
    return Pretraining(
        settings=settings,
        evaluation=evaluation,
        data=data,
        sigma=instantiate(config.sigma),
        network=network,
        ema=ema,
        optimizer=GuardedOptimizer(optimizer, settings, config.precision == "fp16", [network]),
        sampler=instantiate(config.sampler),
        evaluator=evaluator,
        augment=augment,
    )


def _train(run: Run, parts: Pretraining, state: TrainingState) -> None:
    """The iterations from ``state.iteration`` on."""
    settings, network = parts.settings, parts.network
    for x_real, conditions in run.batches(parts.data, settings, start=state.iteration):
        assert x_real is not None  # data without images was refused
        started = time.monotonic()
        draws = run.draws(settings, state.iteration)
        # Dropout draws from the global generator: unlike all else, it differs with the number of processes and rounds.
        of_process = seeded_rng(run.config.seed, run.accelerator.process_index, state.iteration, device=run.device)
        torch.manual_seed(of_process.initial_seed())
        drawn = (draws.sigma(parts.sigma), draws.normal(x_real.shape[1:]))
        images, labels = (x_real, None) if parts.augment is None else parts.augment(x_real, draws)
        rounds = (micro_batches(x, settings.accumulation) for x in (images, conditions, labels, *drawn))
        try:
            for x0, condition, augment_labels, sigma, noise in zip(*rounds, strict=True):
                told = () if augment_labels is None else (augment_labels,)
                with run.accelerator.autocast():
                    prediction = network(add_noise(x0, noise, sigma), sigma, condition, *told)
                losses = denoising_loss(network, prediction, x0, sigma)
                parts.optimizer.backward({"denoising": Term(losses)}, sigma)
                run.log.add({"loss": losses})
            run.log.add({"gradient": parts.optimizer.step(state.iteration)})
            parts.ema.update(network, state.iteration * settings.batch_size, settings.batch_size)
            state.skipped_steps = 0
        except SkippedStepError as refusal:
            run.skip_step(refusal, state, settings, parts.data)

        state.iteration += 1
        state.seconds += time.monotonic() - started
        run.log.end_iteration(state.iteration)
        last = state.iteration == settings.iterations
        run.end_iteration(
            state,
            settings,
            _evaluate(run, parts, state) if state.iteration % settings.evaluate_every == 0 or last else {},
        )
        if last:
            return


def _evaluate(run: Run, parts: Pretraining, state: TrainingState) -> dict[str, float]:
    """The average's figures, in the main process; logged, and it is saved as the run's teacher if its FID is the least.

    Every process must call it.
    """
    average = parts.ema.average
    figures, shown = parts.scorer(run).interim(partial(parts.sampler, average))
    with full_state_dict(average):
        if not run.accelerator.is_main_process:
            return figures
        earlier = [line["fid"] for line in read_log(run.folder / "log.jsonl") if "fid" in line]
        run.log.write(state.iteration, figures)
        if figures["fid"] < min(earlier, default=math.inf):
            average.save_pretrained(run.folder / "teacher")
    save_samples(shown, run.folder / "samples" / f"iteration_{state.iteration:08d}.png")
    return figures


def _finish(run: Run, parts: Pretraining, state: TrainingState) -> dict[str, Any]:
    """Score the teacher that was kept, and write the summary and the curves; every process must call it."""
    run.accelerator.wait_for_everyone()
    teacher = load_denoiser(run.folder / "teacher").to(run.device)
    figures, records = parts.scorer(run).final(
        "teacher", partial(parts.sampler, teacher), parts.sampler.network_evaluations
    )
    if not run.accelerator.is_main_process:
        return {}
    lines = read_log(run.folder / "log.jsonl")
    best = min((line for line in lines if "fid" in line), key=lambda line: line["fid"])
    summary = {
        "teacher": figures,
        "images_seen": best["images_seen"],
        "seconds": round(state.seconds, 1),
        "figures": {"teacher": records},
    }
    run.write_json("summary.json", summary)
    save_curves(lines, ("fid", "recall", "loss", "gradient"), run.folder / "curves.png")
    Console().print(
        f"kept the teacher of iteration {best['iteration']}: FID {figures['fid']:.3f}; {run.folder / 'teacher'}"
    )
    run.finish()
    return summary

"""Pretraining of a teacher."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from onestep.data.augmentation import EDMAugmentation
from onestep.data.dataset import ImageDataset
from onestep.denoiser import Condition, micro_batches
from onestep.engine.ema import EMA
from onestep.engine.log import read_log
from onestep.engine.loop import train
from onestep.engine.optimizer import GuardedOptimizer
from onestep.engine.run import Run
from onestep.engine.settings import EvaluationSettings, TrainingSettings
from onestep.engine.shard import full_state_dict
from onestep.engine.state import TrainingState
from onestep.evaluation.evaluate import RunEvaluator
from onestep.evaluation.generate import SampleSpace
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.result import Measurement
from onestep.models.base import DenoiserNetwork
from onestep.models.generator import load_denoiser
from onestep.noise import SigmaDistribution, add_noise
from onestep.objectives.denoising import denoising_loss
from onestep.objectives.losses import Losses, Term
from onestep.reports.plots import save_curves
from onestep.reports.tables import print_summary
from onestep.samplers import Sampler
from onestep.seeding import seeded_rng


@dataclass
class Pretraining:
    """The parts of a pretraining: settings, data, networks and evaluation."""

    run: Run
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
    space: SampleSpace
    run_evaluator: RunEvaluator = field(init=False)

    def __post_init__(self) -> None:
        self.run_evaluator = RunEvaluator(self.run, self.evaluator, self.evaluation, self.space)


def pretrain(parts: Pretraining) -> dict[str, Any]:
    """Train a denoiser with EDM's loss (arXiv 2206.00364, eq. 8) and keep the best EMA; without metrics, the last.

    ``evaluation.best`` is the key of the value that picks it. The run's folder ``teacher`` loads with ``teacher=local
    teacher.path=...``.

    Returns:
        ``teacher``: metrics of the kept teacher, ``network_evaluations``, ``samples`` and ``samples_per_second``;
        ``images_seen`` by the kept teacher; ``seconds`` of the full training; ``results``: a record of each value.
        Empty outside the main process.

    Raises:
        ValueError, SystemExit: as :func:`onestep.engine.loop.train`.
    """
    run, settings = parts.run, parts.settings
    state = TrainingState({"network": parts.network, "network_ema": parts.ema.average}, {"network": parts.optimizer})

    def evaluate(iteration: int) -> Measurement | None:
        due = iteration % settings.evaluate_every == 0 or iteration == settings.iterations
        return _evaluate(run, parts, state) if due else None

    train(run, state, settings, parts.data, partial(_update, parts), evaluate)
    run.log.close()
    return _finish(run, parts, state)


def _update(parts: Pretraining, iteration: int, x_real: Tensor | None, conditions: Condition) -> None:
    """One step on this process's rows of a batch.

    Raises:
        SkippedStepError: see :meth:`onestep.engine.optimizer.GuardedOptimizer.step`.
    """
    assert x_real is not None  # data without images was rejected
    run, settings, network = parts.run, parts.settings, parts.network
    random = run.random(settings, iteration)
    # Dropout uses torch's global rng. Only it depends on the numbers of processes and micro-batches.
    rng = seeded_rng(run.seed, run.accelerator.process_index, iteration, device=run.device)
    torch.manual_seed(rng.initial_seed())
    sigma_and_noise = (random.sigma(parts.sigma), random.normal(x_real.shape[1:]))
    images, labels = (x_real, None) if parts.augment is None else parts.augment(x_real, random)
    micro = (micro_batches(x, settings.accumulation) for x in (images, conditions, labels, *sigma_and_noise))
    for x0, condition, augment_labels, sigma, noise in zip(*micro, strict=True):
        augmentation = () if augment_labels is None else (augment_labels,)
        with run.accelerator.autocast():
            prediction = network(add_noise(x0, noise, sigma), sigma, condition, *augmentation)
        losses = denoising_loss(network, prediction, x0, sigma)
        parts.optimizer.backward(Losses({"denoising": Term(losses)}), sigma)
        run.log.add({"loss": losses})
    run.log.add(parts.optimizer.step(iteration))
    parts.ema.update(network, iteration * settings.batch_size, settings.batch_size)


def _evaluate(run: Run, parts: Pretraining, state: TrainingState) -> Measurement | None:
    """Evaluate the EMA, and save it as the run's teacher if it is the best so far or there are no metrics.

    Every process must call it. Returns the value that picks the best, see :meth:`RunEvaluator.interim`.
    """
    average, evaluator = parts.ema.average, parts.run_evaluator
    earlier = evaluator.best_line(read_log(run.folder / "log.jsonl"))
    measured = evaluator.interim(state.iteration, partial(parts.sampler, average))
    with full_state_dict(average):
        if run.accelerator.is_main_process and (
            measured is None or measured.is_better_than(evaluator.measurement(earlier))
        ):
            average.save_pretrained(run.folder / "teacher")
    return measured


def _finish(run: Run, parts: Pretraining, state: TrainingState) -> dict[str, Any]:
    """Evaluate the kept teacher, and write the summary and the curves. Every process must call it."""
    run.accelerator.wait_for_everyone()
    teacher = load_denoiser(run.folder / "teacher").to(run.device)
    evaluations = parts.sampler.network_evaluations
    side, records = parts.run_evaluator.final("teacher", partial(parts.sampler, teacher), evaluations)
    run.finish()
    if not run.accelerator.is_main_process:
        return {}
    lines = read_log(run.folder / "log.jsonl")
    best = parts.run_evaluator.best_line(lines)
    summary = {
        "teacher": side,
        "images_seen": state.iteration * parts.settings.batch_size if best is None else best["images_seen"],
        "seconds": round(state.seconds, 1),
        "results": {"teacher": records},
    }
    run.write_json("summary.json", summary)
    metrics = parts.evaluator.descriptions
    save_curves(lines, metrics, ("loss", "network_gradient"), run.folder / "curves.png")
    print_summary(summary, run.folder)
    Console().print(f"the teacher is in {run.folder / 'teacher'}", soft_wrap=True)
    return summary

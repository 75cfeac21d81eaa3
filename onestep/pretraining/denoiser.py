"""Pretraining of a teacher."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from onestep.data.augmentation import EDMAugmentation
from onestep.data.dataset import Batch, TrainingDataset
from onestep.denoiser import micro_batches
from onestep.engine.averages import Averages
from onestep.engine.checkpoint import best_checkpoint
from onestep.engine.log import read_log
from onestep.engine.loop import train
from onestep.engine.optimizer import GuardedOptimizer
from onestep.engine.run import Run
from onestep.engine.settings import EvaluationSettings, TrainingSettings
from onestep.engine.shard import full_state_dict
from onestep.engine.state import TrainingState
from onestep.evaluation.generate import SampleSpace
from onestep.evaluation.of_run import RunEvaluator, check_values
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.result import Measurement
from onestep.models.base import DenoiserNetwork
from onestep.noise import SigmaDistribution, add_noise
from onestep.objectives.denoising import denoising_loss
from onestep.objectives.losses import Losses, Term
from onestep.pretraining.dropout import PromptDropout
from onestep.processes import from_main_process
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
    data: TrainingDataset
    sigma: SigmaDistribution
    network: DenoiserNetwork
    averages: Averages[DenoiserNetwork]
    optimizer: GuardedOptimizer
    sampler: Sampler
    evaluator: Evaluator
    augment: EDMAugmentation | None
    prompt_dropout: PromptDropout | None
    space: SampleSpace
    run_evaluator: RunEvaluator = field(init=False)

    def __post_init__(self) -> None:
        self.run_evaluator = RunEvaluator(self.run, self.evaluator, self.evaluation, self.space)


def pretrain(parts: Pretraining) -> dict[str, Any]:
    """Train a denoiser with EDM's loss (arXiv 2206.00364, eq. 8) and keep its best average; without metrics, the last.

    It is the first average, of the best checkpoint by ``evaluation.best``; the others are in the checkpoints. The run's
    folder ``teacher`` loads with ``teacher=local teacher.path=...``; that of a pipeline is one, for
    ``teacher=diffusers``.

    Returns:
        ``teacher``: metrics of the kept teacher, ``network_evaluations``, ``samples`` and ``samples_per_second``;
        ``images_seen`` by the kept teacher; the number of ``skipped_steps`` and ``seconds`` of the full training;
        ``results``: a record of each value. Empty outside the main process.

    Raises:
        ValueError: as :func:`onestep.engine.loop.train` and :meth:`Run.guarded`, or if a value could not be computed.
        SystemExit: as these, after a signal.
    """
    run, settings = parts.run, parts.settings
    averages = {f"network_{name}": network for name, network in parts.averages.networks.items()}
    state = TrainingState({"network": parts.network, **averages}, {"network": parts.optimizer})

    def evaluate(iteration: int) -> list[Measurement]:
        if iteration % settings.evaluate_every and iteration != settings.iterations:
            return []
        samples = {name: partial(parts.sampler, average) for name, average in parts.averages.networks.items()}
        return parts.run_evaluator.interim(iteration, samples)

    with run.guarded():
        train(run, state, settings, parts.data, partial(_update, parts), evaluate)
        run.log.close()
        return _finish(run, parts, state)


def _update(parts: Pretraining, iteration: int, data: Sequence[Batch]) -> None:
    """One step on this process's rows of a batch.

    Raises:
        SkippedStepError: see :meth:`onestep.engine.optimizer.GuardedOptimizer.step`.
    """
    ((x_real, conditions),) = data
    assert x_real is not None  # data without images was rejected
    run, settings, network = parts.run, parts.settings, parts.network
    random = run.random(settings, iteration)
    # Dropout uses torch's global rng. Only it depends on the numbers of processes and micro-batches.
    rng = seeded_rng(run.seed, run.accelerator.process_index, iteration, device=run.device)
    torch.manual_seed(rng.initial_seed())
    sigma = parts.sigma.after(iteration / settings.iterations)
    sigma_and_noise = (random.sigma(sigma), random.normal(x_real.shape[1:]))
    if parts.prompt_dropout is not None:
        conditions = parts.prompt_dropout(conditions, random)
    images, labels = (x_real, None) if parts.augment is None else parts.augment(x_real, random)
    micro = (micro_batches(x, settings.accumulation) for x in (images, conditions, labels, *sigma_and_noise))
    for x0, condition, augment_labels, sigma, noise in zip(*micro, strict=True):
        augmentation = {} if augment_labels is None else {"augment_labels": augment_labels}
        with run.accelerator.autocast():
            prediction = network(add_noise(x0, noise, sigma), sigma, condition | augmentation)
        losses = denoising_loss(prediction, x0, network.loss_weight(sigma))
        parts.optimizer.backward(Losses({"denoising": Term(losses)}), sigma)
        run.log.add({"loss": losses})
    run.log.add(parts.optimizer.step(iteration))
    parts.averages.after_update(network)
    parts.averages.after_iteration(network, iteration * settings.batch_size, settings.batch_size)


def _finish(run: Run, parts: Pretraining, state: TrainingState) -> dict[str, Any]:
    """Save and evaluate the best teacher, and write the summary and the curves. Every process must call it."""
    name, teacher = next(iter(parts.averages.networks.items()))
    iteration = _restore_best(run, parts, state, f"network_{name}")
    evaluations = parts.sampler.network_evaluations
    with full_state_dict(teacher):
        if run.accelerator.is_main_process:
            teacher.save_teacher(run.folder / "teacher")
    side, records, failures = parts.run_evaluator.final("teacher", partial(parts.sampler, teacher), evaluations)
    if not run.accelerator.is_main_process:
        return {}
    summary = {
        "teacher": side,
        "images_seen": iteration * parts.settings.batch_size,
        "skipped_steps": state.skipped_steps,
        "seconds": round(state.seconds, 1),
        "results": {"teacher": records},
    }
    run.finish(summary)
    metrics = parts.evaluator.descriptions
    save_curves(read_log(run.folder / "log.jsonl"), metrics, ("loss", "network_gradient"), run.folder / "curves.png")
    print_summary(summary, run.folder)
    print(f"the teacher is in {shlex.quote(str(run.folder / 'teacher'))}")
    check_values({"teacher": failures}, run.folder)
    return summary


def _restore_best(run: Run, parts: Pretraining, state: TrainingState, name: str) -> int:
    """Load the network ``name`` of this run's best checkpoint; without values, keep the last. Returns its iteration."""
    run.wait_for_writer()
    key = parts.run_evaluator.best
    found: tuple[Path, int] | None = from_main_process(lambda: key and best_checkpoint(run.folder, key))
    if found is None:
        return state.iteration
    folder, iteration = found
    state.load_network(name, folder)
    return iteration

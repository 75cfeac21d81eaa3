"""Pretraining of what a distillation starts from: a teacher, and the feature network of the digits' FID."""

import math
import time
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from onestep.config import instantiate
from onestep.data.dataset import ImageDataset
from onestep.metrics.features import DigitsFeatures, to_uint8
from onestep.networks.base import DenoiserNetwork
from onestep.noise import SigmaDistribution, add_noise
from onestep.seeding import seeded_generator
from onestep.training.build import check_fit
from onestep.training.ema import EMA
from onestep.training.log import read_log
from onestep.training.pictures import save_curves, save_samples
from onestep.training.run import Run
from onestep.training.scoring import build_evaluator
from onestep.training.settings import EvaluationSettings, TrainingSettings
from onestep.training.state import TrainingState
from onestep.training.steps import denoising_loss, optimizer_step


def pretrain(config: DictConfig) -> dict[str, Any]:
    """Train a denoiser by EDM's loss (arXiv 2206.00364, eq. 8) and keep the average that had the least FID.

    The folder ``teacher`` of the run then loads with ``teacher=local teacher.path=...``.

    Returns:
        The metrics of the kept teacher, with ``network_evaluations``, ``samples`` and ``images_seen``.

    Raises:
        ValueError: before training, for parts that do not fit each other; during it, for a non-finite loss or gradient.
    """
    run = Run(config)
    settings: TrainingSettings = instantiate(config.training)
    evaluation: EvaluationSettings = instantiate(config.evaluation)
    data: ImageDataset = instantiate(config.data)
    sigma_distribution: SigmaDistribution = instantiate(config.sigma)
    torch.manual_seed(seeded_generator(config.seed).initial_seed())
    network: DenoiserNetwork = instantiate(config.network).to(run.device).train()
    check_fit(network, data)
    sampler, evaluator = instantiate(config.sampler), build_evaluator(config, config.get("features"), data, run.device)
    optimizer = instantiate(config.optimizer.teacher)(list(network.parameters()))
    ema = EMA(network, settings.ema_halflife, settings.ema_rampup)
    state = TrainingState({"network": network, "network_ema": ema.average}, {"network": optimizer})
    run.start(state, settings)

    for x0, condition in run.batches(data, settings, start=state.cycle):
        if state.cycle == settings.cycles:
            break
        started = time.monotonic()
        random = seeded_generator(config.seed, run.accelerator.process_index, state.cycle, device=x0.device)
        torch.manual_seed(random.initial_seed())  # dropout draws from the global generator
        sigma = sigma_distribution.sample(len(x0), random)
        x_sigma = add_noise(x0, torch.randn(x0.shape, generator=random, device=x0.device), sigma)
        with run.accelerator.autocast():
            prediction = network(x_sigma, sigma, condition)
        losses = denoising_loss(network, prediction, x0, sigma)
        norm = optimizer_step(optimizer, {"denoising": losses.mean()}, settings, state.cycle)
        ema.update(network, state.cycle * settings.batch_size, settings.batch_size)
        state.cycle += 1
        state.seconds += time.monotonic() - started
        run.log.add({"loss": losses, "gradient": norm})
        run.log.end_cycle(state.cycle)

        last = state.cycle == settings.cycles
        if (state.cycle % settings.evaluate_every == 0 or last) and run.accelerator.is_main_process:
            images = run.draw(partial(sampler, ema.average), evaluation.samples, evaluation.batch_size, data)
            _keep_the_best(run, state.cycle, evaluator([images]), ema.average)
            save_samples(images[: evaluation.grid], run.folder / "samples" / f"cycle_{state.cycle:08d}.png")
        if state.cycle % settings.checkpoint_every == 0 or last:
            run.save(state, settings)
    run.log.close()
    return _finish_pretraining(run, sampler.network_evaluations, evaluation.samples)


def _keep_the_best(run: Run, cycle: int, figures: dict[str, float], average: DenoiserNetwork) -> None:
    """Log the figures of ``average``, and save it as the run's teacher if none before had a smaller FID."""
    earlier = [line["fid"] for line in read_log(run.folder / "log.jsonl") if "fid" in line]
    run.log.write(cycle, figures)
    if figures["fid"] < min(earlier, default=math.inf):
        average.save_pretrained(run.folder / "teacher")


def _finish_pretraining(run: Run, network_evaluations: int, samples: int) -> dict[str, Any]:
    lines = read_log(run.folder / "log.jsonl")
    best = min((line for line in lines if "fid" in line), key=lambda line: line["fid"])
    summary = best | {"network_evaluations": network_evaluations, "samples": samples}
    if run.accelerator.is_main_process:
        run.write_json("summary.json", summary)
        save_curves(lines, ("fid", "recall", "loss", "gradient"), run.folder / "curves.png")
        Console().print(f"kept the teacher of cycle {best['cycle']}: FID {best['fid']:.3f}; {run.folder / 'teacher'}")
    run.finish()
    return summary


def pretrain_digits_features(config: DictConfig) -> dict[str, Any]:
    """Train the digits' feature network; its accuracy is that of a twin trained without a fifth of the images.

    Returns:
        ``held_out_accuracy`` of the twin, and ``images``, how many the kept network was trained on.
    """
    run = Run(config)
    data: ImageDataset = instantiate(config.data)
    images, conditions = data.__getitems__(range(len(data)))
    assert isinstance(conditions, Tensor)
    order = torch.randperm(len(data), generator=seeded_generator(config.seed))
    labels = conditions.argmax(1)
    held_out = order[: len(data) // 5]
    twin = _train_classifier(config, images[order[len(held_out) :]], labels[order[len(held_out) :]])
    correct = twin.classify(to_uint8(images[held_out])).argmax(1) == labels[held_out]
    network = _train_classifier(config, images, labels)
    save_file(network.state_dict(), run.folder / "digits_features.safetensors")
    summary = {"held_out_accuracy": correct.double().mean().item(), "images": len(data)}
    run.write_json("summary.json", summary)
    Console().print(f"held-out accuracy {summary['held_out_accuracy']:.4f}; {run.folder}")
    return summary


def _train_classifier(config: DictConfig, images: Tensor, labels: Tensor) -> DigitsFeatures:
    """Train on images shifted by up to one pixel under a little noise, so that the features are smooth."""
    options = config.features_training
    torch.manual_seed(config.seed)
    network = DigitsFeatures()
    steps = options.epochs * len(images) // options.batch_size
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps)
    for _ in tqdm(range(steps), desc="classifier", mininterval=1, leave=False):
        chosen = torch.randint(len(images), (options.batch_size,))
        row, column = torch.randint(3, (2,)).tolist()
        height, width = images.shape[2:]
        shifted = F.pad(images[chosen], (1, 1, 1, 1), value=-1.0)[:, :, row : row + height, column : column + width]
        noised = (shifted + options.noise * torch.randn_like(shifted)).clamp(-1, 1)
        logits = network.classify(to_uint8(noised))
        loss = F.cross_entropy(logits, labels[chosen], label_smoothing=options.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()

"""Training of a small classifier whose features a Frechet distance is measured in."""

from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor
from tqdm.auto import tqdm

from onestep.build.run import build_run
from onestep.config import instantiate
from onestep.data.dataset import ImageDataset
from onestep.images import to_uint8
from onestep.metrics.classifier import Classifier
from onestep.seeding import seeded_rng


def pretrain_features(config: DictConfig) -> dict[str, Any]:
    """Train ``config.classifier`` on ``config.data`` and write it into the run's folder as ``features.safetensors``.

    Its accuracy is that on ``config.held_out``; where there is no such data, that of a twin trained without a fifth of
    the images.

    Returns:
        ``held_out_accuracy``; ``held_out_images``, how many that is of; and ``images``, how many the kept network was
        trained on.

    Raises:
        ValueError: for data without classes.
    """
    run = build_run(config)
    run.write_config()
    images, labels = _read(instantiate(config.data))
    held_out: ImageDataset | None = instantiate(config.held_out)
    if held_out is None:
        order = torch.randperm(len(images), generator=seeded_rng(config.seed))
        away, rest = order[: len(images) // 5], order[len(images) // 5 :]
        judged, of_held_out = _train(config, images[rest], labels[rest]), (images[away], labels[away])
        network = _train(config, images, labels)
    else:
        judged = network = _train(config, images, labels)
        of_held_out = _read(held_out)
    accuracy = _accuracy(judged, *of_held_out)
    network.config["held_out_accuracy"] = accuracy
    network.save(run.folder / "features.safetensors")
    summary = {"held_out_accuracy": accuracy, "held_out_images": len(of_held_out[0]), "images": len(images)}
    run.write_json("summary.json", summary)
    Console().print(f"held-out accuracy {accuracy:.4f}; {run.folder / 'features.safetensors'}")
    return summary


def _read(data: ImageDataset) -> tuple[Tensor, Tensor]:
    """All images [N, C, H, W] in [-1, 1] and their classes [N]."""
    images, condition = data.__getitems__(range(len(data)))
    if images is None or "labels" not in condition:
        raise ValueError(f"{data.description}: a classifier needs images with classes")
    return images, condition["labels"].argmax(1)


def _train(config: DictConfig, images: Tensor, labels: Tensor) -> Classifier:
    """Train on images shifted by up to one pixel under a little noise, so that the features are smooth."""
    options = config.features_training
    torch.manual_seed(config.seed)
    network: Classifier = instantiate(config.classifier)
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


@torch.no_grad()
def _accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """The share of ``images`` that ``network`` classifies right."""
    predicted = torch.cat([network.classify(to_uint8(part)).argmax(1) for part in images.split(500)])
    return (predicted == labels).double().mean().item()

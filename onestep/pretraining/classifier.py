"""Training of a small classifier as a feature network for the Frechet distance."""

import copy
import shlex
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from onestep.data.dataset import ImageDataset
from onestep.engine.run import Run
from onestep.images import to_uint8
from onestep.metrics.classifier import Classifier
from onestep.precision import double
from onestep.pretraining.settings import ClassifierSettings
from onestep.seeding import seeded_rng


def pretrain_features(
    run: Run, network: Classifier, data: ImageDataset, held_out: ImageDataset | None, settings: ClassifierSettings
) -> dict[str, Any]:
    """Train ``network`` on ``data`` and write it to ``features.safetensors`` in the run's folder.

    The reported accuracy is on ``held_out``. Without such data it is that of a copy, trained without a fifth of the
    images, on this fifth. All randomness except the choice of the fifth is torch's global rng.

    Returns:
        ``held_out_accuracy``; ``held_out_images``, the number of images of the accuracy; and ``images``, the number of
        training images of the saved network. Empty outside the main process.

    Raises:
        ValueError: for data without classes, or of others than the network's, or fewer images than one step needs.
    """
    for name, one in (("data", data), ("held_out", held_out)):
        if one is not None:
            _check_fit(network, one, name)
    run.write_config()
    images, labels = _read(data)
    if held_out is None:
        order = torch.randperm(len(images), generator=seeded_rng(run.seed))
        away, rest = order[: len(images) // 5], order[len(images) // 5 :]
        tested, of_held_out = copy.deepcopy(network), (images[away], labels[away])
        _train(tested, images[rest], labels[rest], settings)
    else:
        tested, of_held_out = network, _read(held_out)
    _train(network, images, labels, settings)
    accuracy = _accuracy(tested, *of_held_out)
    network.config["held_out_accuracy"] = accuracy
    if not run.accelerator.is_main_process:
        return {}
    network.save(run.folder / "features.safetensors")
    summary = {"held_out_accuracy": accuracy, "held_out_images": len(of_held_out[0]), "images": len(images)}
    run.finish(summary)
    print(f"held-out accuracy {accuracy:.4f}; {shlex.quote(str(run.folder / 'features.safetensors'))}")
    return summary


def _check_fit(network: Classifier, data: ImageDataset, name: str) -> None:
    if not data.label_dim:
        raise ValueError(f"{name}, {data.description}: a classifier needs images with classes; choose other data=...")
    of_data = {"image_shape": list(data.image_shape), "num_classes": data.label_dim}
    for setting, value in of_data.items():
        if network.config[setting] != value:
            raise ValueError(
                f"classifier.{setting}={network.config[setting]}: {name} has {value}; expected equal ones, and "
                "held_out=null takes a part of the data"
            )


def _read(data: ImageDataset) -> tuple[Tensor, Tensor]:
    """All images [N, C, H, W] in [-1, 1] and their classes [N]."""
    images, condition = data.__getitems__(range(len(data)))
    return images, condition["labels"].argmax(1)


@torch.random.fork_rng(devices=[])  # the same random numbers in each training
def _train(network: Classifier, images: Tensor, labels: Tensor, settings: ClassifierSettings) -> None:
    """Train on images with noise and shifts of up to one pixel, for smooth features."""
    steps = settings.epochs * len(images) // settings.batch_size
    if steps == 0:
        raise ValueError(
            f"features_training.batch_size={settings.batch_size}: expected at most epochs * images, "
            f"{settings.epochs} * {len(images)}"
        )
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps)
    network.train()
    for _ in tqdm(range(steps), desc="classifier", mininterval=1, leave=False):
        chosen = torch.randint(len(images), (settings.batch_size,))
        row, column = torch.randint(3, (2,)).tolist()
        height, width = images.shape[2:]
        shifted = F.pad(images[chosen], (1, 1, 1, 1), value=-1.0)[:, :, row : row + height, column : column + width]
        noised = (shifted + settings.noise * torch.randn_like(shifted)).clamp(-1, 1)
        logits = network.classify(to_uint8(noised))
        loss = F.cross_entropy(logits, labels[chosen], label_smoothing=settings.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


@torch.no_grad()
def _accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """The accuracy of ``network`` on ``images``, in [0, 1]."""
    predicted = torch.cat([network.classify(to_uint8(part)).argmax(1) for part in images.split(500)])
    return double(predicted == labels).mean().item()

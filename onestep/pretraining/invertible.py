"""Training of an invertible network of details by exact maximum likelihood."""

import shlex
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from onestep.data.dataset import ImageDataset
from onestep.engine.run import Run
from onestep.models.invertible import InvertibleNetwork
from onestep.pretraining.settings import InvertibleSettings
from onestep.seeding import seeded_rng

_BATCH = 16  # images in a pass of a measurement
_OF_SCALES, _OF_HELD_OUT = 1, 2  # streams of random numbers beside the training's


def pretrain_invertible(
    run: Run,
    network: InvertibleNetwork,
    data: ImageDataset,
    held_out: ImageDataset | None,
    settings: InvertibleSettings,
) -> dict[str, Any]:
    """Train ``network`` on ``data`` and write it to the folder ``invertible`` of the run.

    The likelihood is of the details given the low band, of pixels with uniform noise of one grey level. Reported bits
    are of the images of ``held_out``; without such data, of a fifth of ``data`` that is not trained.

    Returns:
        ``held_out_bits`` for each detail, see :meth:`onestep.models.invertible.InvertibleNetwork.bits`;
        ``gaussian_bits`` of the independent Gaussian of each band, which the training starts from; ``held_out_images``
        and ``images``, the numbers of measured and of training images. Empty outside the main process.

    Raises:
        ValueError: for images of odd sides or other channels than the network's, for too few images, or if the loss is
            not finite.
    """
    for name, one in (("data", data), ("held_out", held_out)):
        if one is not None:
            _check_fit(network, one, name)
    run.write_config()
    rows = torch.randperm(len(data), generator=seeded_rng(run.seed)).tolist()
    tested, away = (data, rows[: len(rows) // 5]) if held_out is None else (held_out, list(range(len(held_out))))
    trained = rows[len(away) :] if held_out is None else rows
    if not away or not trained:
        raise ValueError(f"data, {data.description}: too few images to train and to hold some out: {len(data)}")
    network.to(run.device).fit_scales(_noised(data, trained[:1000], seeded_rng(run.seed, _OF_SCALES)).to(run.device))
    gaussian = _bits(run, network, tested, away)
    _train(run, network, data, trained, settings)
    bits = _bits(run, network, tested, away)
    if not run.accelerator.is_main_process:
        return {}
    network.save_pretrained(run.folder / "invertible")
    summary = {
        "held_out_bits": bits,
        "gaussian_bits": gaussian,
        "held_out_images": len(away),
        "images": len(trained),
    }
    run.finish(summary)
    place = shlex.quote(str(run.folder / "invertible"))
    print(f"held-out bits for each detail {bits:.4f}, of a Gaussian of each band {gaussian:.4f}; {place}")
    return summary


def _check_fit(network: InvertibleNetwork, data: ImageDataset, name: str) -> None:
    channels, height, width = data.image_shape
    if channels != network.channels:
        raise ValueError(f"{name} has {channels} channels, and the network takes {network.channels}: use other data")
    if height % 2 or width % 2:
        raise ValueError(f"{name} has images of {height}x{width}: the Haar transform needs even sides")


def _noised(data: ImageDataset, rows: list[int], rng: torch.Generator) -> Tensor:
    """The images of ``rows`` [B, C, H, W] with uniform noise of one grey level of 255."""
    images, _ = data.__getitems__(rows)
    return images + (torch.rand(images.shape, generator=rng) - 0.5) / 127.5


def _train(
    run: Run, network: InvertibleNetwork, data: ImageDataset, rows: list[int], settings: InvertibleSettings
) -> None:
    """Train on images of ``rows``, drawn with replacement."""
    steps = -(-settings.total_images // settings.batch_size)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=max(steps, 2))
    rng = seeded_rng(run.seed, 0)
    with tqdm(total=steps, desc="invertible network", mininterval=1, leave=False) as bar:
        for step in range(steps):
            chosen = torch.randint(len(rows), (settings.batch_size,), generator=rng).tolist()
            loss = network.bits(_noised(data, [rows[place] for place in chosen], rng).to(run.device)).mean()
            if not loss.isfinite():
                raise ValueError(
                    f"invertible_training.lr={settings.lr}: the loss is not finite in step {step}: set a lower rate"
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.largest_gradient)
            optimizer.step()
            schedule.step()
            bar.update()
            bar.set_postfix(bits=f"{loss.item():.3f}", refresh=False)


@torch.no_grad()
def _bits(run: Run, network: InvertibleNetwork, data: ImageDataset, rows: list[int]) -> float:
    """The mean bits of the images of ``rows``, with the same noise at each call."""
    rng = seeded_rng(run.seed, _OF_HELD_OUT)
    parts = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    bits = torch.cat([network.bits(_noised(data, part, rng).to(run.device)).cpu() for part in parts])
    mean = bits.mean().item()
    if not bits.isfinite().all():
        raise ValueError("the held-out images have no finite likelihood: set a lower invertible_training.lr")
    return mean

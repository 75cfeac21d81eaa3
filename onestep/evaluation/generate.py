"""Drawing many images, each from its own seed, in one process or shared by several."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from onestep.data.dataset import ImageDataset
from onestep.denoiser import Condition, map_condition
from onestep.engine.prefetch import prefetch
from onestep.processes import process_rows, rank_and_count
from onestep.seeding import seeded_inputs, seeded_noise

#: From latents [B, C, H, W], condition and further noise to images [B, C, H, W] in data units.
Draw = Callable[[Tensor, Condition, Iterator[Tensor]], Tensor]


@torch.no_grad()
def draw_batches(
    draw: Draw,
    seeds: Sequence[int],
    batch_size: int,
    image_shape: tuple[int, int, int],
    label_dim: int,
    accelerator: Accelerator,
    classes: list[int] | None = None,
    condition_of: Callable[[list[int]], Condition] | None = None,
    progress: str | None = None,
) -> Iterator[Tensor]:
    """Images [<= batch_size, C, H, W] of ``seeds``, float32 on the CPU, drawn in the accelerator's precision.

    Args:
        draw: what draws.
        seeds, classes, image_shape, label_dim: see :func:`onestep.seeding.seeded_inputs`.
        condition_of: from seeds to what is drawn of them, for data of other conditions than classes.
        batch_size: images drawn at a time.
        accelerator: says where, and in which precision.
        progress: the progress bar's title; None for no bar.
    """

    def inputs() -> Iterator[tuple[list[int], Tensor, Condition]]:
        for start in range(0, len(seeds), batch_size):
            batch = list(seeds[start : start + batch_size])
            latents, labels = seeded_inputs(batch, image_shape, label_dim, classes)
            yield batch, latents, labels if condition_of is None else condition_of(batch)

    with tqdm(total=len(seeds), desc=progress, disable=progress is None, unit="img", leave=False) as bar:
        for batch, latents, given in prefetch(inputs()):
            condition = map_condition(lambda tensor: tensor.to(accelerator.device), given)
            noises = seeded_noise(batch, image_shape, label_dim)
            with accelerator.autocast():
                images = draw(latents.to(accelerator.device), condition, noises)
            yield images.float().cpu()
            bar.update(len(batch))


def draw_share(
    draw: Draw,
    seeds: range,
    batch_size: int,
    image_shape: tuple[int, int, int],
    label_dim: int,
    accelerator: Accelerator,
    data: ImageDataset | None = None,
    **options: Any,
) -> Iterator[Tensor]:
    """This process's share of the images of ``seeds``, the first process's the first; else as :func:`draw_batches`.

    Every process must take all of it: each draws as many batches as the others, as those that share a network must, and
    some a seed more than it keeps.

    Args:
        data: what decodes the images, and gives the conditions where these are no classes; None for neither.
    """
    share, longest = process_rows(len(seeds)), -(-len(seeds) // rank_and_count()[1])
    kept = len(share)
    own = [*seeds[share.start : share.stop], *[seeds[0]] * (longest - kept)]
    condition_of = None if data is None or data.unconditional is None else data.condition_of
    for batch in draw_batches(
        draw, own, batch_size, image_shape, label_dim, accelerator, condition_of=condition_of, **options
    ):
        yield (batch if data is None else data.decode(batch))[:kept]
        kept = max(0, kept - len(batch))

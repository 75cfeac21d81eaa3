"""Generating many samples, each from its own seed, in one process or distributed over several."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from onestep.denoiser import Condition, beyond_labels, map_condition
from onestep.engine.prefetch import prefetch
from onestep.processes import gather_rows, process_rows, rank_and_count
from onestep.seeding import seeded_inputs, seeded_noise

#: From latents [B, C, H, W], condition and further noise to samples [B, C, H, W] in data units.
Draw = Callable[[Tensor, Condition, Iterator[Tensor]], Tensor]


class Conditions(Protocol):
    """Conditions by position, such as embeddings of prompts; of no text, ``prompts`` is None."""

    prompts: Sequence[str] | None

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Sequence[int]) -> Condition: ...


class Network(Protocol):
    """A network as far as its inputs and outputs are concerned, see :class:`onestep.models.base.DenoiserNetwork`."""

    image_shape: tuple[int, int, int]
    label_dim: int

    @property
    def condition_keys(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class SampleSpace:
    """From seeds to the inputs of a network, and from its outputs to images.

    Args:
        noise_shape: the shape of one sample's noise; of a denoiser, (channels, height, width).
        label_dim: number of classes; 0 for none.
        classes: taken in turn by the seeds; None draws each seed's class from it.
        conditions: taken in turn by the seeds, of a network whose condition is no class; None for one that has none.
        decode: images [B, C, H, W] in [-1, 1] of outputs, both on the CPU; None where they are images.
    """

    noise_shape: tuple[int, ...]
    label_dim: int
    classes: Sequence[int] | None = None
    conditions: Conditions | None = None
    decode: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(
        cls,
        network: Network,
        classes: Sequence[int] | None = None,
        conditions: Conditions | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> Self:
        """The space of ``network``.

        Raises:
            ValueError: for a network with conditions other than classes, if none are given; for one without, if some
                are.
        """
        others = beyond_labels(network.condition_keys)
        if others and conditions is None:
            raise ValueError(f"this network takes {', '.join(others)}, and is given none: give prompts=...")
        if conditions is not None and not others:
            raise ValueError("prompts are given, and this network takes none")
        return cls(network.image_shape, network.label_dim, classes, conditions, decode)

    @property
    def prompts(self) -> Sequence[str] | None:
        """The prompts that the seeds take in turn; None for other conditions."""
        return None if self.conditions is None else self.conditions.prompts

    def inputs(self, seeds: Sequence[int]) -> tuple[Tensor, Condition]:
        """Latents [N, C, H, W] ~ N(0, I) and the condition of ``seeds``, each a function of its seed alone."""
        classes = None if self.classes is None else list(self.classes)
        latents, condition = seeded_inputs(list(seeds), self.noise_shape, self.label_dim, classes)
        if self.conditions is not None:
            condition = self.conditions[[seed % len(self.conditions) for seed in seeds]]
        return latents, condition

    def noise(self, seeds: Sequence[int]) -> Iterator[Tensor]:
        """Further noise [N, C, H, W] of ``seeds`` without end, see :func:`onestep.seeding.seeded_noise`."""
        return seeded_noise(seeds, self.noise_shape, self.label_dim)


@torch.no_grad()
def draw_batches(
    draw: Draw,
    seeds: Sequence[int],
    batch_size: int,
    space: SampleSpace,
    accelerator: Accelerator,
    progress: str | None = None,
) -> Iterator[Tensor]:
    """Outputs [<= batch_size, C, H, W] for ``seeds``, float32 on the CPU, computed in the accelerator's precision.

    Args:
        draw: the generator, or a sampler of a teacher.
        seeds: of the samples.
        batch_size: samples at a time.
        space: where the inputs come from.
        accelerator: gives device and precision.
        progress: the progress bar's title; None for no bar.
    """

    def inputs() -> Iterator[tuple[list[int], Tensor, Condition]]:
        for start in range(0, len(seeds), batch_size):
            batch = list(seeds[start : start + batch_size])
            yield batch, *space.inputs(batch)

    with tqdm(total=len(seeds), desc=progress, disable=progress is None, unit="img", leave=False) as bar:
        for batch, latents, given in prefetch(inputs()):
            condition = map_condition(lambda tensor: tensor.to(accelerator.device), given)
            with accelerator.autocast():
                images = draw(latents.to(accelerator.device), condition, space.noise(batch))
            yield images.float().cpu()
            bar.update(len(batch))


def draw_share(
    draw: Draw, seeds: range, batch_size: int, space: SampleSpace, accelerator: Accelerator, progress: str | None = None
) -> Iterator[Tensor]:
    """This process's share of the images of ``seeds``, decoded; the first process has the first.

    Every process must take all of it: each computes as many batches as the others, as those with a sharded network
    must, and some a seed more than it keeps. See :func:`draw_batches` for the arguments.
    """
    share, longest = process_rows(len(seeds)), -(-len(seeds) // rank_and_count()[1])
    kept = len(share)
    own = [*seeds[share.start : share.stop], *[seeds[0]] * (longest - kept)]
    for batch in draw_batches(draw, own, batch_size, space, accelerator, progress):
        yield (batch if space.decode is None else space.decode(batch))[:kept]
        kept = max(0, kept - len(batch))


def draw_all(draw: Draw, seeds: range, batch_size: int, space: SampleSpace, accelerator: Accelerator) -> Tensor:
    """All images of ``seeds`` [N, C, H, W], in every process."""
    share = list(draw_share(draw, seeds, batch_size, space, accelerator))
    return gather_rows(torch.cat(share), accelerator.device)

"""Generation of many samples, each from its own seed, in one process or several."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from onestep.denoiser import Condition, keys_of_data, map_condition
from onestep.engine.prefetch import prefetch
from onestep.processes import gather_rows, process_rows, rank_and_count
from onestep.seeding import check_classes, seeded_inputs, seeded_noise

#: Maps latents [B, C, H, W], their condition and further noise to samples [B, C, H, W] in data units.
SampleFunction = Callable[[Tensor, Condition, Iterator[Tensor]], Tensor]


class Conditions(Protocol):
    """Conditions by position, such as embeddings of prompts. ``prompts`` is None if they have no text."""

    prompts: Sequence[str] | None

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Sequence[int]) -> Condition: ...


class Network(Protocol):
    """The inputs and outputs of a network, see :class:`onestep.models.base.DenoiserNetwork`."""

    image_shape: tuple[int, int, int]
    label_dim: int

    @property
    def condition_keys(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class SampleSpace:
    """Maps seeds to the inputs of a network, and its outputs to images.

    Args:
        noise_shape: shape of one sample's noise; (channels, height, width) for a denoiser.
        label_dim: number of classes; 0 for none.
        classes: seed ``s`` gets ``classes[s % len(classes)]``; None for a random class, a function of the seed.
        conditions: conditions other than classes; seed ``s`` gets ``conditions[s % len(conditions)]``.
        decode: maps outputs to images [B, C, H, W] in [-1, 1], both on the CPU; None if the outputs are images.

    Raises:
        ValueError: for classes outside [0, label_dim).
    """

    noise_shape: tuple[int, ...]
    label_dim: int
    classes: Sequence[int] | None = None
    conditions: Conditions | None = None
    decode: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.classes is not None:
            check_classes(self.classes, self.label_dim)

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
            ValueError: if the network takes conditions other than classes and ``conditions`` is None, or the reverse.
        """
        others = keys_of_data(network)
        if others and conditions is None:
            remedy = "no images: use data that has them" if "image" in others else "no prompts: set prompts=[...]"
            raise ValueError(f"this network takes {', '.join(others)}, got {remedy}")
        if conditions is not None and not others:
            raise ValueError("this network takes no prompts, but prompts are given: remove them")
        return cls(network.image_shape, network.label_dim, classes, conditions, decode)

    @property
    def drawn_classes(self) -> str | None:
        """How classes are drawn, for records of results; None without classes."""
        if not self.label_dim or self.conditions is not None:
            return None
        if self.classes is None:
            return f"{self.label_dim:,} at random"
        used, length = len(set(self.classes)), len(self.classes)
        return f"{used:,} of {self.label_dim:,} in turn" + (f", a cycle of {length:,}" if length > used else "")

    @property
    def prompts(self) -> Sequence[str] | None:
        """The prompts of the conditions; None for other conditions."""
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
def generate_batches(
    sample: SampleFunction,
    seeds: Sequence[int],
    batch_size: int,
    space: SampleSpace,
    accelerator: Accelerator,
    progress: str | None = None,
) -> Iterator[Tensor]:
    """Outputs [<= batch_size, C, H, W] for ``seeds``, float32 on the CPU, computed in the accelerator's precision.

    Args:
        sample: a generator, or a sampler with its teacher.
        seeds: one per sample.
        batch_size: samples per batch.
        space: inputs of the seeds.
        accelerator: device and precision.
        progress: title of the progress bar; None for no bar.
    """

    def inputs() -> Iterator[tuple[list[int], Tensor, Condition]]:
        for start in range(0, len(seeds), batch_size):
            batch = list(seeds[start : start + batch_size])
            yield batch, *space.inputs(batch)

    # On the CPU a thread takes time from the network instead of hiding its own.
    batches = inputs() if accelerator.device.type == "cpu" else prefetch(inputs())
    with tqdm(total=len(seeds), desc=progress, disable=progress is None, unit="img", leave=False) as bar:
        for batch, latents, given in batches:
            condition = map_condition(lambda tensor: tensor.to(accelerator.device), given)
            with accelerator.autocast():
                images = sample(latents.to(accelerator.device), condition, space.noise(batch))
            yield images.float().cpu()
            bar.update(len(batch))


def generate_local(
    sample: SampleFunction,
    seeds: Sequence[int],
    batch_size: int,
    space: SampleSpace,
    accelerator: Accelerator,
    progress: str | None = None,
) -> Iterator[Tensor]:
    """This process's rows of the images of ``seeds``, decoded; the first process has the first rows.

    Every process must consume the full iterator. All compute equally many batches, because a sharded network needs all
    processes in each call; some thus compute one image more than they keep. For the arguments see
    :func:`generate_batches`.
    """
    rows, longest = process_rows(len(seeds)), -(-len(seeds) // rank_and_count()[1])
    kept = len(rows)
    padded = [*seeds[rows.start : rows.stop], *[seeds[0]] * (longest - kept)]
    for batch in generate_batches(sample, padded, batch_size, space, accelerator, progress):
        yield (batch if space.decode is None else space.decode(batch))[:kept]
        kept = max(0, kept - len(batch))


def check_finite(samples: Tensor, seeds: Sequence[int]) -> None:
    """Check that all ``samples`` [N, ...] of ``seeds`` are finite: as pixels, NaN would be black.

    Raises:
        ValueError: with the seeds of those that are not.
    """
    broken = (~samples.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        named = ", ".join(str(seeds[place]) for place in broken[:5]) + (", ..." if len(broken) > 5 else "")
        raise ValueError(
            f"{len(broken)} of {len(samples)} samples of a batch are not finite (seeds {named}): check the network's "
            "weights and the precision"
        )


def generate_all(
    sample: SampleFunction, seeds: range, batch_size: int, space: SampleSpace, accelerator: Accelerator
) -> Tensor:
    """All images of ``seeds`` [N, C, H, W], in every process."""
    batches = list(generate_local(sample, seeds, batch_size, space, accelerator))
    return gather_rows(torch.cat(batches), accelerator.device)

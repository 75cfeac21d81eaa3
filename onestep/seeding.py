"""Random numbers as functions of a key, independent of the order of calls."""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.denoiser import Condition
from onestep.noise import SigmaDistribution
from onestep.reading import one_line

#: Seeds of samples are below this number: torch's rng on the CPU takes 32 bits, so that larger ones repeat others.
SEEDS = 2**32


def check_seeds(first: int, last: int, setting: str = "seeds") -> None:
    """Check that the seeds from ``first`` to ``last`` have random numbers of their own; ``setting`` sets them.

    Raises:
        ValueError: if one is outside [0, SEEDS).
    """
    if first < 0 or last >= SEEDS:
        raise ValueError(f"{setting}: got the seeds from {first} to {last}, expected seeds from 0 to {SEEDS - 1}")


def check_classes(classes: Sequence[int], label_dim: int) -> None:
    """Check that ``classes`` are indices of ``label_dim`` classes.

    Raises:
        ValueError: for anything else, or none.
    """
    if not classes or not all(type(label) is int and 0 <= label < label_dim for label in classes):
        known = f"{label_dim} classes, numbered from 0" if label_dim else "0 classes: set classes=null"
        raise ValueError(f"classes={one_line(list(classes))}: this network has {known}")


def one_hot(label: int, label_dim: int) -> Tensor:
    """The condition [label_dim] of a class."""
    return F.one_hot(torch.tensor(label), label_dim).float()


def seeded_rng(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """An rng that is a function of ``key``, such as (seed, rank, iteration): a resumed run gets the same numbers."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(seed)


class BatchRandom:
    """This process's rows of the random numbers of a global batch.

    Every process computes the numbers of the full batch and keeps its rows. Sample ``i`` of the batch thus gets the
    same numbers for any number of processes. (The unused numbers cost a millisecond on a GPU for 2,048 samples of
    3x64x64. An rng per sample would need a loop over the batch.)

    Args:
        key: key of the rng, such as (seed, 0, iteration).
        batch_size: samples over all processes.
        rows: the rows of this process.
        device: device of the rng.
    """

    def __init__(self, *key: int, batch_size: int, rows: slice, device: torch.device | str = "cpu") -> None:
        self.rng = seeded_rng(*key, device=device)
        self.batch_size, self.rows = batch_size, rows

    def normal(self, sample_shape: Sequence[int]) -> Tensor:
        """Noise ~ N(0, I) [rows, *sample_shape]."""
        shape = (self.batch_size, *sample_shape)
        return torch.randn(shape, generator=self.rng, device=self.rng.device)[self.rows]

    def uniform(self, sample_shape: Sequence[int]) -> Tensor:
        """Numbers in [0, 1) [rows, *sample_shape]."""
        shape = (self.batch_size, *sample_shape)
        return torch.rand(shape, generator=self.rng, device=self.rng.device)[self.rows]

    def labels(self, label_dim: int, classes: Sequence[int] | None = None) -> Tensor:
        """One-hot labels [rows, label_dim] of uniform classes, among ``classes`` if they are not None."""
        shape, device = (self.batch_size,), self.rng.device
        count = label_dim if classes is None else len(classes)
        drawn = torch.randint(count, shape, generator=self.rng, device=device)[self.rows]
        return F.one_hot(drawn if classes is None else torch.tensor(classes, device=device)[drawn], label_dim).float()

    def sigma(self, distribution: SigmaDistribution) -> Tensor:
        """Noise levels [rows] in data units."""
        return distribution.sample(self.batch_size, self.rng)[self.rows]


def noise_from_latents(latents: Tensor, dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
    """Further noise ~ N(0, I) of the latents' shape [B, ...] and device, without end; row ``i`` from ``latents[i]``.

    A sample thus depends on its seed alone, not on the rest of the batch. Each row has an rng on the CPU, so that the
    numbers are the same on every device.
    """
    rngs = [torch.Generator().manual_seed(zlib.crc32(z.numpy().tobytes())) for z in latents.detach().cpu()]
    while True:
        noise = [torch.randn(latents.shape[1:], generator=rng, dtype=dtype) for rng in rngs]
        yield torch.stack(noise).to(latents.device)


def seeded_noise(seeds: Sequence[int], noise_shape: tuple[int, ...], label_dim: int = 0) -> Iterator[Tensor]:
    """Noise [N, *noise_shape] ~ N(0, I) without end, on the CPU, row ``i`` from ``seeds[i]`` alone.

    It continues the rng of the latents of :func:`seeded_inputs`, like diffusers' pipelines: with
    ``generator=torch.Generator().manual_seed(seed)`` they use the same numbers.
    """
    check_seeds(min(seeds), max(seeds))
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
    for rng in rngs:
        torch.randn(noise_shape, generator=rng)  # the latents
        if label_dim:
            torch.randint(label_dim, (), generator=rng)
    while True:
        yield torch.stack([torch.randn(noise_shape, generator=rng) for rng in rngs])


def seeded_inputs(
    seeds: list[int], noise_shape: tuple[int, ...], label_dim: int, classes: list[int] | None = None
) -> tuple[Tensor, Condition]:
    """Latents [N, *noise_shape] ~ N(0, I) and the condition, row ``i`` from ``seeds[i]`` alone.

    The condition is ``labels``, one-hot [N, label_dim], or empty for a ``label_dim`` of 0. The class is a function of
    the seed: random, or ``classes[seed % len(classes)]``.

    Raises:
        ValueError: for classes outside [0, label_dim), or seeds outside [0, SEEDS).
    """
    check_seeds(min(seeds), max(seeds))
    if classes is not None:
        check_classes(classes, label_dim)
    latents, labels = [], []
    for seed in seeds:
        rng = torch.Generator().manual_seed(seed)
        latents.append(torch.randn(noise_shape, generator=rng))
        if label_dim:
            random_class = int(torch.randint(label_dim, (), generator=rng))
            labels.append(random_class if classes is None else classes[seed % len(classes)])
    condition = {"labels": F.one_hot(torch.tensor(labels), label_dim).float()} if label_dim else {}
    return torch.stack(latents), condition

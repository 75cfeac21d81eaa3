"""Randomness that depends on what it is for, never on when it is drawn."""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.denoiser import Condition
from onestep.noise import SigmaDistribution


def seeded_rng(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """An rng whose stream is a function of ``key``, such as (seed, rank, iteration): a resumed run draws the same."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(seed)


class GlobalDraws:
    """The randomness of one global batch, of which this process takes its rows.

    Each draw is made for the whole batch in every process, so that sample ``i`` of the batch is given the same however
    the processes share it. (``processes`` times the numbers are drawn that are used: of 2,048 samples of 3x64x64 that
    is a millisecond on a GPU, where a generator for each sample would take a loop over the batch.)

    Args:
        key: of the stream, such as (seed, 0, iteration).
        batch_size: samples over all processes.
        rows: those of this process.
        device: where to draw.
    """

    def __init__(self, *key: int, batch_size: int, rows: slice, device: torch.device | str = "cpu") -> None:
        self.generator = seeded_rng(*key, device=device)
        self.batch_size, self.rows = batch_size, rows

    def normal(self, sample_shape: Sequence[int]) -> Tensor:
        """Noise ~ N(0, I) [rows, *sample_shape]."""
        shape = (self.batch_size, *sample_shape)
        return torch.randn(shape, generator=self.generator, device=self.generator.device)[self.rows]

    def uniform(self, sample_shape: Sequence[int]) -> Tensor:
        """Numbers in [0, 1) [rows, *sample_shape]."""
        shape = (self.batch_size, *sample_shape)
        return torch.rand(shape, generator=self.generator, device=self.generator.device)[self.rows]

    def labels(self, label_dim: int) -> Tensor:
        """One-hot labels [rows, label_dim] of uniform classes."""
        shape, device = (self.batch_size,), self.generator.device
        classes = torch.randint(label_dim, shape, generator=self.generator, device=device)
        return F.one_hot(classes[self.rows], label_dim).float()

    def sigma(self, distribution: SigmaDistribution) -> Tensor:
        """Noise levels [rows] in data units."""
        return distribution.sample(self.batch_size, self.generator)[self.rows]


def own_noise(latents: Tensor, dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
    """Fresh noise ~ N(0, I) of the latents' shape [B, ...] and device, without end; sample ``i``'s from ``latents[i]``.

    An image that is drawn with it depends on its own seed and on nothing else in its batch. Each sample has a generator
    of its own, on the CPU, so that every device draws the same.
    """
    streams = [torch.Generator().manual_seed(zlib.crc32(z.numpy().tobytes())) for z in latents.detach().cpu()]
    while True:
        noise = [torch.randn(latents.shape[1:], generator=stream, dtype=dtype) for stream in streams]
        yield torch.stack(noise).to(latents.device)


def seeded_noise(seeds: Sequence[int], noise_shape: tuple[int, ...], label_dim: int = 0) -> Iterator[Tensor]:
    """Noise [N, C, H, W] ~ N(0, I) without end, on the CPU, sample ``i``'s from ``seeds[i]`` alone.

    It goes on in the stream that :func:`seeded_inputs` took the latents from, as pipelines of diffusers do: their
    ``generator=torch.Generator().manual_seed(seed)`` draws the same.
    """
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    for stream in streams:
        torch.randn(noise_shape, generator=stream)  # the latents
        if label_dim:
            torch.randint(label_dim, (), generator=stream)
    while True:
        yield torch.stack([torch.randn(noise_shape, generator=stream) for stream in streams])


def seeded_inputs(
    seeds: list[int], noise_shape: tuple[int, ...], label_dim: int, classes: list[int] | None = None
) -> tuple[Tensor, Condition]:
    """Latents [N, C, H, W] ~ N(0, I) and the condition, sample ``i`` from ``seeds[i]`` alone.

    The condition is ``labels``, one-hot [N, label_dim], or none for a ``label_dim`` of 0. The class is drawn from the
    seed too, or cycles through ``classes``, by the seed.

    Raises:
        ValueError: for classes that the network does not have.
    """
    if classes is not None and not all(0 <= label < label_dim for label in classes):
        raise ValueError(f"classes={classes}: this network has {label_dim} classes, numbered from 0")
    latents, labels = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        latents.append(torch.randn(noise_shape, generator=generator))
        if label_dim:
            drawn = int(torch.randint(label_dim, (), generator=generator))
            labels.append(drawn if classes is None else classes[seed % len(classes)])
    condition = {"labels": F.one_hot(torch.tensor(labels), label_dim).float()} if label_dim else {}
    return torch.stack(latents), condition

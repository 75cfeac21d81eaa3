"""Pairs of noise and the image that the teacher draws from it, for DMD's regression: drawn once and kept in a cache.

Pair ``i`` is a function of its seed, ``i``: its latents and condition are ``seeded_inputs([i])``, so that the images
alone are stored. They lie in the chunks of a :class:`onestep.cache.ChunkCache`: an interrupted drawing goes on at the
first chunk that is missing, and more pairs are drawn behind those there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from onestep.cache import ChunkCache, fingerprint
from onestep.data.dataset import PositionSampler
from onestep.denoiser import Condition, map_condition
from onestep.evaluation.generate import SampleSpace, draw_batches
from onestep.models.base import DenoiserNetwork
from onestep.samplers import Sampler
from onestep.seeding import seeded_inputs
from onestep.toy.teacher import MixtureTeacher

Teacher = DenoiserNetwork | MixtureTeacher
_FORMAT = 1  # of the files and of how a seed becomes a pair; another number leaves all older pairs aside


@dataclass(frozen=True)
class PairSettings:
    """Which pairs to draw, and where they are kept.

    Args:
        count: how many.
        batch_size: images drawn at a time, and kept in one file.
        cache: the folder under which each teacher and sampler has its own; it may start with ~.

    Raises:
        ValueError: for numbers that are not positive.
    """

    count: int
    batch_size: int
    cache: str

    def __post_init__(self) -> None:
        for name in ("count", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"pairs.{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True)
class TeacherPairs:
    """Pairs in memory, and the order in which a run reads them.

    Args:
        latents: the noise [N, C, H, W] ~ N(0, I).
        condition: tensors [N, ...] by name; empty for none.
        images: what the teacher drew of them [N, C, H, W], in data units.
        batch_size: pairs an iteration over all processes.
        seed: seed of the order.
        accelerator: says which share of each batch is this process's, and where it goes.
    """

    latents: Tensor
    condition: Condition
    images: Tensor
    batch_size: int
    seed: int
    accelerator: Accelerator

    def batch(self, iteration: int) -> tuple[Tensor, Condition, Tensor]:
        """This process's latents, conditions and images of ``iteration``: a function of the iteration alone."""
        rank, processes, device = (
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.accelerator.device,
        )
        order = PositionSampler(len(self.images), self.batch_size, self.seed, iteration, rank, processes)
        chosen = torch.as_tensor(next(iter(order)))
        condition = map_condition(lambda tensor: tensor[chosen].to(device), self.condition)
        return self.latents[chosen].to(device), condition, self.images[chosen].to(device)


def prepare_pairs(
    settings: PairSettings,
    teacher: Teacher,
    sampler: Sampler,
    accelerator: Accelerator,
    batch_size: int,
    seed: int,
) -> TeacherPairs:
    """The pairs of the seeds 0 to ``count - 1``, from the cache as far as it has them, else drawn now and kept there.

    The processes share the drawing. ``batch_size`` and ``seed`` are those of the training, see :class:`TeacherPairs`.

    Raises:
        ValueError: if the cache cannot be written to.
    """
    cache = PairCache(settings, teacher, sampler, accelerator)
    chunks = range(math.ceil(settings.count / settings.batch_size))
    held = cache.read_or_draw(chunks[accelerator.process_index :: accelerator.num_processes])
    accelerator.wait_for_everyone()
    # The other processes' share; drawn here too where they are on a machine with a cache of its own.
    held |= cache.read_or_draw([chunk for chunk in chunks if chunk not in held])
    images = torch.cat([held[chunk] for chunk in chunks])[: settings.count]
    latents, condition = seeded_inputs(list(range(settings.count)), teacher.image_shape, teacher.label_dim)
    return TeacherPairs(latents, condition, images, batch_size, seed, accelerator)


class PairCache:
    """The folder of one teacher's and sampler's images, in chunks; chunk ``k`` holds the ``k``-th ``batch_size`` seeds.

    Raises:
        ValueError: if the folder cannot be made, or later written to.
    """

    def __init__(self, settings: PairSettings, teacher: Teacher, sampler: Sampler, accelerator: Accelerator) -> None:
        self.batch_size = settings.batch_size
        self.teacher, self.sampler, self.accelerator = teacher, sampler, accelerator
        key = _fingerprint(teacher, sampler, settings.batch_size, accelerator.mixed_precision)
        self.chunks = ChunkCache(settings.cache, key, "pairs", "pairs.cache")

    @property
    def folder(self) -> Path:
        """Where the chunks lie."""
        return self.chunks.folder

    def path(self, chunk: int) -> Path:
        """Where a chunk lies."""
        return self.chunks.path(self._name(chunk))

    def read_or_draw(self, chunks: Sequence[int]) -> dict[int, Tensor]:
        """The images [batch_size, C, H, W] of each of ``chunks``; those that are missing are drawn and kept."""
        held = {chunk: kept["images"] for chunk in chunks if (kept := self.chunks.read(self._name(chunk))) is not None}
        missing = [chunk for chunk in chunks if chunk not in held]
        if not missing:
            return held
        self.accelerator.print(
            f"pairs of noise and teacher image: {len(held)} of {len(chunks)} chunks are in {self.folder}"
        )
        batches = draw_batches(
            partial(self.sampler, self.teacher),
            [seed for chunk in missing for seed in self._seeds(chunk)],
            self.batch_size,
            SampleSpace.of(self.teacher),
            self.accelerator,
            progress="drawing pairs from the teacher" if self.accelerator.is_main_process else None,
        )
        for images, chunk in zip(batches, missing, strict=True):
            self.chunks.write(self._name(chunk), {"images": images})
            held[chunk] = images
        return held

    @staticmethod
    def _name(chunk: int) -> str:
        return f"images_{chunk:06d}"

    def _seeds(self, chunk: int) -> range:
        return range(chunk * self.batch_size, (chunk + 1) * self.batch_size)


def _fingerprint(teacher: Teacher, sampler: Sampler, batch_size: int, precision: str) -> str:
    """A hash of all that the images depend on; of the batch size too, as it decides rounding and the files' extent."""
    description = {
        "format": _FORMAT,
        "teacher": {key: value for key, value in teacher.config.items() if not key.startswith("_")},
        "guidance": teacher.guidance,
        "sampler": [type(sampler).__name__, vars(sampler)],
        "batch_size": batch_size,
        "precision": precision,
    }
    return fingerprint(description, teacher.state_dict())

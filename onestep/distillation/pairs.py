"""Pairs of noise and the teacher's image for it, for DMD's regression: generated once and cached.

Pair ``i`` is a function of the seed ``i``: its latents and condition are ``space.inputs([i])``, and only the images
are stored. They are in the chunks of a :class:`onestep.cache.ChunkCache`. An interrupted generation resumes at the
missing chunks, and a larger number of pairs extends the cache.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from onestep.cache import ChunkCache, fingerprint
from onestep.data.dataset import PositionSampler
from onestep.denoiser import Condition, map_condition
from onestep.evaluation.generate import SampleSpace, generate_batches
from onestep.models.base import DenoiserNetwork
from onestep.models.guidance import PLAIN
from onestep.processes import meet
from onestep.ranges import BatchSize, PathText, Samples, checked
from onestep.samplers import Sampler
from onestep.toy.teacher import MixtureTeacher

Teacher = DenoiserNetwork | MixtureTeacher
_FORMAT = 1  # version of the files and of the function from seed to pair; a new number invalidates older pairs


@checked
@dataclass(frozen=True)
class PairSettings:
    """Number and cache of the pairs.

    Args:
        count: number of pairs.
        batch_size: images per batch of the sampler, and per file of the cache.
        cache: parent of the folders of all teachers and samplers; it may start with ~.

    Raises:
        ValueError: for numbers that are not positive.
    """

    count: Samples
    batch_size: BatchSize
    cache: PathText


@dataclass(frozen=True)
class TeacherPairs:
    """Pairs in memory, and their order in the training.

    Args:
        latents: the noise [N, C, H, W] ~ N(0, I).
        condition: tensors [N, ...] by name; empty for none.
        images: the teacher's images [N, C, H, W], in data units.
        batch_size: pairs per iteration over all processes.
        seed: seed of the order.
        accelerator: rank, number of processes and device.
    """

    latents: Tensor
    condition: Condition
    images: Tensor
    batch_size: int
    seed: int
    accelerator: Accelerator

    def batch(self, iteration: int) -> tuple[Tensor, Condition, Tensor]:
        """This process's latents, condition and images for ``iteration``, a function of the iteration alone."""
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
    space: SampleSpace | None = None,
    conditions: str = "",
) -> TeacherPairs:
    """The pairs of the seeds 0 to ``count - 1``, from the cache; missing ones are generated and cached.

    The work is divided among the processes, which meet after each chunk. ``batch_size`` and ``seed`` are those of the
    training, see :class:`TeacherPairs`. ``space`` has the training's classes and conditions, None stands for random
    classes; ``conditions`` is a hash of the conditions.

    Raises:
        ValueError: if the cache cannot be written.
    """
    cache = PairCache(settings, teacher, sampler, accelerator, space, conditions)
    chunks = range(math.ceil(settings.count / settings.batch_size))
    mine = chunks[accelerator.process_index :: accelerator.num_processes]
    held = cache.read_or_generate(mine, meet=partial(meet, accelerator.device))
    if len(mine) < math.ceil(len(chunks) / accelerator.num_processes):
        meet(accelerator.device)
    accelerator.wait_for_everyone()
    # The chunks of the other processes; generated here too if they are on another machine with a separate cache.
    held |= cache.read_or_generate([chunk for chunk in chunks if chunk not in held])
    images = torch.cat([held[chunk] for chunk in chunks])[: settings.count]
    latents, condition = cache.space.inputs(range(settings.count))
    return TeacherPairs(latents, condition, images, batch_size, seed, accelerator)


class PairCache:
    """The cached images of one teacher and sampler; chunk ``k`` holds the ``k``-th ``batch_size`` seeds.

    Raises:
        ValueError: if the folder cannot be made or written.
    """

    def __init__(
        self,
        settings: PairSettings,
        teacher: Teacher,
        sampler: Sampler,
        accelerator: Accelerator,
        space: SampleSpace | None = None,
        conditions: str = "",
    ) -> None:
        self.batch_size, self.space = settings.batch_size, space or SampleSpace.of(teacher)
        self.teacher, self.sampler, self.accelerator = teacher, sampler, accelerator
        precision = accelerator.mixed_precision
        key = _fingerprint(teacher, sampler, settings.batch_size, precision, self.space, conditions)
        self.chunks = ChunkCache(settings.cache, key, "pairs", "pairs.cache")

    @property
    def folder(self) -> Path:
        """The folder of the chunks."""
        return self.chunks.folder

    def path(self, chunk: int) -> Path:
        """The file of a chunk."""
        return self.chunks.path(self._name(chunk))

    def read_or_generate(self, chunks: Sequence[int], meet: Callable[[], None] = lambda: None) -> dict[int, Tensor]:
        """The images [batch_size, C, H, W] of each of ``chunks``; missing ones are generated and cached.

        ``meet`` is called after each chunk.
        """
        held = {chunk: kept["images"] for chunk in chunks if (kept := self.chunks.read(self._name(chunk))) is not None}
        missing = [chunk for chunk in chunks if chunk not in held]
        if missing:
            self.accelerator.print(
                f"pairs of noise and teacher image: {len(held)} of {len(chunks)} chunks are in {self.folder}"
            )
        batches = generate_batches(
            partial(self.sampler, self.teacher),
            [seed for chunk in missing for seed in self._seeds(chunk)],
            self.batch_size,
            self.space,
            self.accelerator,
            progress="generating pairs with the teacher" if missing and self.accelerator.is_main_process else None,
        )
        for chunk in chunks:
            if chunk not in held:
                held[chunk] = next(batches)
                self.chunks.write(self._name(chunk), {"images": held[chunk]})
            meet()
        return held

    @staticmethod
    def _name(chunk: int) -> str:
        return f"images_{chunk:06d}"

    def _seeds(self, chunk: int) -> range:
        return range(chunk * self.batch_size, (chunk + 1) * self.batch_size)


def _fingerprint(
    teacher: Teacher, sampler: Sampler, batch_size: int, precision: str, space: SampleSpace, conditions: str
) -> str:
    """A hash of everything that the images depend on; the batch size too, which affects rounding and the chunks."""
    rule = getattr(teacher, "guidance_rule", PLAIN)
    description = {
        "format": _FORMAT,
        "teacher": {key: value for key, value in teacher.config.items() if not key.startswith("_")},
        "guidance": teacher.guidance,
        **({} if rule == PLAIN else {"guidance_rule": vars(rule)}),
        "levels": [getattr(teacher, name, None) for name in ("sigma_min", "sigma_max")],  # the sampler's range
        "sampler": [type(sampler).__name__, vars(sampler)],
        "batch_size": batch_size,
        "precision": precision,
        **({} if space.classes is None else {"classes": list(space.classes)}),
        **({"conditions": conditions} if conditions else {}),
    }
    return fingerprint(description, teacher.state_dict())

"""One pass of samples through a feature network, with its outputs."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol
from zlib import crc32

import torch
from torch import Tensor
from tqdm.auto import tqdm

from onestep.images import to_uint8
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.statistics import FeatureStatistics
from onestep.processes import gather_rows, process_rows, rank_and_count

#: What metrics read: features of a network, or "pairs", the samples with what they are to restore. "of_prompts" are
#: features after a number that is the same for samples of one prompt.
Kind = Literal["moments", "vectors", "of_prompts", "logits", "similarities", "pairs"]
#: The kinds that metrics read of generated samples alone.
OF_SAMPLES: frozenset[Kind] = frozenset({"of_prompts", "logits", "similarities"})

_WITH_FEATURES: frozenset[Kind] = frozenset({"moments", "vectors", "of_prompts"})
_BATCH = 250  # images in a forward pass of the network
_READ = 1000  # images of the reference in a batch


class Reference(Protocol):
    """The real images, read in batches."""

    image_shape: tuple[int, int, int]

    @property
    def description(self) -> str:
        """Their name in the record of a metric."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, rows: range | None = None) -> Iterator[Tensor]:
        """All images, or those of ``rows``, in order: [<= batch_size, C, H, W] in [-1, 1]."""

    def fingerprint(self) -> str:
        """A hash of their content."""


class Extraction:
    """Collects the outputs ``kinds`` of ``network`` for samples; None for points, which are used as features."""

    def __init__(self, network: FeatureNetwork | None, kinds: set[Kind], device: torch.device | str) -> None:
        self.network = None if network is None else network.to(device)
        self.kinds, self.device = kinds, device
        self.statistics: FeatureStatistics | None = None
        self.vectors: list[Tensor] = []
        self.of_prompts: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.similarities: list[Tensor] = []

    @torch.no_grad()
    def add(self, samples: Tensor, prompts: Sequence[str] | None = None) -> None:
        """Add uint8 images [B, C, H, W], with prompts if a metric reads them, or points [B, D, 1, 1].

        Raises:
            ValueError: for images of another shape than the network's, or without prompts or classes that a metric
                reads.
        """
        shape = None if self.network is None else self.network.image_shape
        if shape is not None and tuple(samples.shape[1:]) != tuple(shape):
            raise ValueError(
                f"the feature network takes images {tuple(shape)}, got {tuple(samples.shape[1:])}: choose other "
                "features=..."
            )
        for start in range(0, len(samples), _BATCH):
            part = samples[start : start + _BATCH].to(self.device)
            texts = None if prompts is None else prompts[start : start + _BATCH]
            if self.kinds & _WITH_FEATURES:
                features = part.flatten(1) if self.network is None else self.network(part)
                if "moments" in self.kinds:
                    self.statistics = self.statistics or FeatureStatistics(features.shape[1], self.device)
                    self.statistics.update(features)
                if "vectors" in self.kinds:
                    self.vectors.append(features.cpu())
                if "of_prompts" in self.kinds:
                    self.of_prompts.append(_numbered(features.cpu(), texts))
            if "logits" in self.kinds:
                if self.network is None:
                    raise ValueError("this metric needs the class logits of a feature network, and points have none")
                self.logits.append(self.network.classify(part).cpu())
            if "similarities" in self.kinds:
                if self.network is None or texts is None:
                    raise ValueError("this metric compares images with prompts, and there are none: give data=prompts")
                self.similarities.append(self.network.similarity(part, texts).cpu())

    def finish(self, distributed: bool = False) -> dict[Kind, Any]:
        """The collected outputs by kind; if ``distributed``, those of all processes in the order of the ranks.

        Raises:
            ValueError: in all processes, if an output is not finite.
        """
        found: dict[Kind, Any] = {}
        if self.statistics is not None:
            found["moments"] = (self.statistics.reduce() if distributed else self.statistics).moments()
        for kind in ("vectors", "of_prompts", "logits", "similarities"):
            parts = getattr(self, kind)
            if parts:
                found[kind] = gather_rows(torch.cat(parts), self.device) if distributed else torch.cat(parts)
                if not found[kind].isfinite().all():
                    raise ValueError(f"some features ({kind}) are not finite: check the feature network's weights")
        return found

    def all_of(self, reference: Reference) -> dict[Kind, Any]:
        """The outputs for all images of ``reference``, in every process.

        The work is divided among the processes, unless there are fewer images than processes.
        """
        if not self.kinds:
            return {}
        divided = len(reference) >= rank_and_count()[1]
        rows = process_rows(len(reference)) if divided else range(len(reference))
        total = -(-len(rows) // _READ)
        for batch in tqdm(reference.batches(_READ, rows), "features of the reference", total, leave=False, delay=2):
            self.add(batch if self.network is None else to_uint8(batch))
        return self.finish(distributed=divided)


def _numbered(features: Tensor, prompts: Sequence[str] | None) -> Tensor:
    """The ``features`` [B, D] after a checksum of their prompts, [B, 1 + D], which processes can exchange."""
    if prompts is None:
        raise ValueError("this metric compares the images of a prompt, and there are none: give data=prompts")
    numbers = torch.tensor([crc32(prompt.encode()) for prompt in prompts], dtype=torch.float64)
    return torch.cat([numbers[:, None], features.double()], 1)

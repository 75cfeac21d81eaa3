"""The real side of the metrics: its features are computed once, and kept on disk."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onestep.metrics.extraction import Extraction, Kind, Reference
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.statistics import Moments
from onestep.processes import main_process_says, rank_and_count

_FORMAT = 1  # of the files; another number leaves all older ones aside


class ReferenceCache:
    """The file of one dataset's features in one network.

    Args:
        folder: where such files are kept; it may start with ~. None keeps none.
        reference, network: what and in whose features; points, whose network is None, are never kept.
        device: where the network runs.
    """

    def __init__(
        self,
        folder: str | None,
        reference: Reference,
        network: FeatureNetwork | None,
        device: torch.device | str,
    ) -> None:
        self.reference, self.network, self.device = reference, network, device
        self.path: Path | None = None
        if folder is not None and network is not None:
            content = f"{_FORMAT} {reference.fingerprint()} {network.fingerprint()}"
            self.path = Path(folder).expanduser() / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.safetensors"

    def read_or_make(self, kinds: set[Kind]) -> dict[Kind, Any]:
        """The ``kinds`` from the file, else computed and kept; every process must call it.

        Those other than the first have nothing in hand where the first has read a file.

        Raises:
            ValueError: if the file cannot be written.
        """
        main = rank_and_count()[0] == 0
        found = self._read(self.path, kinds) if main and self.path is not None and kinds else None
        if main_process_says(found is not None, self.device):
            return found or {}
        made = Extraction(self.network, kinds, self.device).all_of(self.reference)
        if main and self.path is not None and kinds:
            self._write(self.path, made)
        return made

    def _read(self, path: Path, kinds: set[Kind]) -> dict[Kind, Any] | None:
        """What the file holds; None if there is none, it is damaged, or it holds less than ``kinds``."""
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        if metadata.get("sha256") != _checksum(tensors) or not kinds <= set(json.loads(metadata["kinds"])):
            return None
        found: dict[Kind, Any] = {}
        if "moments" in kinds:
            found["moments"] = Moments(tensors["mean"], tensors["covariance"], int(tensors["count"]))
        if "vectors" in kinds:
            found["vectors"] = tensors["vectors"]
        return found

    def _write(self, path: Path, found: dict[Kind, Any]) -> None:
        tensors: dict[str, Tensor] = {}
        if "moments" in found:
            moments: Moments = found["moments"]
            tensors |= {"mean": moments.mean, "covariance": moments.covariance, "count": torch.tensor(moments.count)}
        if "vectors" in found:
            tensors["vectors"] = found["vectors"].contiguous()
        beside = path.with_name(f".writing_{os.getpid()}_{path.name}")  # another process may write the same
        metadata = {"kinds": json.dumps(sorted(found)), "sha256": _checksum(tensors)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, beside, metadata=metadata)
            os.replace(beside, path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                beside.unlink()
            raise ValueError(
                f"the reference's features cannot be kept in {path.parent} ({error}): make room there, choose another "
                "folder by features_cache=..., or keep none by features_cache=null"
            ) from error


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

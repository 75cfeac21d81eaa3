"""The features of the real images, computed once and cached on disk."""

from typing import Any

import torch
from torch import Tensor

from onestep.cache import ChunkCache, fingerprint
from onestep.metrics.extraction import Extraction, Kind, Reference
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.statistics import Moments
from onestep.processes import broadcast_flag, rank_and_count

_FORMAT = 2  # version of the files; a new number invalidates older files


def reference_features(
    reference: Reference,
    network: FeatureNetwork | None,
    kinds: set[Kind],
    device: torch.device | str,
    cache: str | None,
) -> dict[Kind, Any]:
    """The features of ``reference`` by kind, from the cache or computed now. Every process must call it.

    Only the main process reads and writes the cache. The other processes return only the kinds that were computed now.

    Args:
        reference: the images.
        network: the feature network; None for points, which are not cached.
        kinds: kinds of features, each a chunk of the cache.
        device: device of the network.
        cache: the parent folder of the cache; it may start with ~. None for no cache.

    Raises:
        ValueError: if the cache cannot be written.
    """
    if not kinds:
        return {}
    chunks: ChunkCache | None = None
    if cache is not None and network is not None:
        description = {"format": _FORMAT, "reference": reference.fingerprint(), "network": network.fingerprint()}
        chunks = ChunkCache(cache, fingerprint(description), "features of the reference", "features_cache")
    main = rank_and_count()[0] == 0
    found: dict[Kind, Any] = {}
    if main and chunks is not None:
        found = {kind: _unpack(tensors) for kind in sorted(kinds) if (tensors := chunks.read(kind)) is not None}
    missing = {kind for kind in sorted(kinds) if not broadcast_flag(kind in found, device)}
    computed = Extraction(network, missing, device).all_of(reference)
    if main and chunks is not None:
        for kind, value in computed.items():
            chunks.write(kind, _pack(value))
    return found | computed


def _pack(value: Moments | Tensor) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {"vectors": value}
    return {"mean": value.mean, "covariance": value.covariance, "count": torch.tensor(value.count)}


def _unpack(tensors: dict[str, Tensor]) -> Moments | Tensor:
    if "vectors" in tensors:
        return tensors["vectors"]
    return Moments(tensors["mean"], tensors["covariance"], int(tensors["count"]))

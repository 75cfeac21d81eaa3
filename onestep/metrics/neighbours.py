"""Exact distances to nearest neighbours among many features.

Matrix products give the squared distances fast, with rounding errors from the cancellation of large squares. Where
these errors could change a result, the distance is computed again from the difference of the features.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_ELEMENTS = 1 << 24  # elements in a block of distances
_PAIRS = 1 << 14  # pairs in a batch of exact distances


def nearest_distances(features: Tensor, k: int) -> Tensor:
    """The ascending distances [N, k] of each of ``features`` [N, D] to its ``k`` nearest neighbours, without itself.

    Raises:
        ValueError: for at most ``k`` features.
    """
    if len(features) <= k:
        raise ValueError(f"the {k}-th nearest neighbour needs more than {k} samples, got {len(features)}")
    features = features.double()
    found = []
    for chunk, squares, doubt in _squared_distances(features, features):
        # The nearest is the sample itself, so the k-th neighbour is the (k + 1)-th smallest.
        bound = (squares + doubt).topk(k + 1, largest=False).values[:, -1:]
        rows, columns = (squares - doubt <= bound).nonzero(as_tuple=True)
        exact = torch.full_like(squares, torch.inf)
        exact[rows, columns] = _pair_distances(chunk, features, rows, columns)
        found.append(exact.topk(k + 1, largest=False).values[:, 1:])
    return torch.cat(found)


def count_within(points: Tensor, centres: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """The number [N] of balls around each point, and the number [M] of points in each ball.

    Args:
        points: [N, D].
        centres: the balls' centres [M, D].
        radii: the balls' radii [M]; a point at exactly this distance is inside.
    """
    points, centres = points.double(), centres.double()
    of_point, of_ball = [], torch.zeros(len(centres), dtype=torch.long, device=centres.device)
    for chunk, squares, doubt in _squared_distances(points, centres):
        inside = squares <= radii.square()
        rows, columns = ((squares - radii.square()).abs() <= doubt).nonzero(as_tuple=True)
        inside[rows, columns] = _pair_distances(chunk, centres, rows, columns) <= radii[columns]
        of_point.append(inside.sum(1))
        of_ball += inside.sum(0)
    return torch.cat(of_point), of_ball


def _squared_distances(points: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chunks of ``points``, with squared distances [B, M] to ``others`` and bounds [B, M] of their rounding errors."""
    norms = others.square().sum(1)
    rounding = 4 * (points.shape[1] + 4) * torch.finfo(points.dtype).eps
    for chunk in points.split(max(1, _ELEMENTS // len(others))):
        scale = chunk.square().sum(1)[:, None] + norms
        yield chunk, torch.addmm(scale, chunk, others.T, alpha=-2), rounding * scale


def _pair_distances(points: Tensor, others: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``|points[rows] - others[columns]|``, [P]."""
    pairs = zip(rows.split(_PAIRS), columns.split(_PAIRS), strict=True)
    parts = [(points[row] - others[column]).square().sum(1).sqrt() for row, column in pairs]
    return torch.cat(parts) if parts else points.new_empty(0)

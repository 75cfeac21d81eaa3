"""What processes give to each other in an iteration: the gradients once, and a few hundred bytes of statistics."""

import pytest

from benchmarks.weak_scaling import train_apart


@pytest.mark.slow
@pytest.mark.parametrize("layout, micro_batches", [((), 4), (("shard=true",), 2)])
def test_gradients_are_reduced_once_a_step_however_many_micro_batches(
    layout: tuple[str, ...], micro_batches: int
) -> None:
    """And of no network that a step does not train."""
    for count in (1, micro_batches):
        found = train_apart(2, 7, (*layout, f"training.accumulation={count}"))
        reduced = sum(size for name, size in found["by_operation"].items() if "reduce" in name)
        assert 1 <= reduced / found["gradient_bytes"] < 1.001
        gathered = found["bytes_per_iteration"] - reduced
        assert gathered > 1e6 if layout else gathered < 1000  # the networks' shards, and the log's moments

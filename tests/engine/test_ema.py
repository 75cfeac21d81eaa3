"""The half-life of the moving average."""

import pytest
import torch
from torch import nn

from onestep.engine.ema import EMA


def weight_of(network: nn.Module) -> float:
    return next(network.parameters()).item()


@pytest.fixture
def network() -> nn.Module:
    """One weight of value 1, and BatchNorm's buffers."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.ones_(network[0].weight)  # type: ignore[arg-type]
    return network


@pytest.mark.parametrize("batch_size", [10, 50, 100])
def test_old_value_weighs_half_after_the_half_life(network: nn.Module, batch_size: int) -> None:
    """After 200 images with a half-life of 100 a quarter remains, for every batch size."""
    ema = EMA(network, halflife=100, rampup=0.05)
    nn.init.zeros_(network[0].weight)  # type: ignore[index]
    for images in range(0, 200, batch_size):
        if images == 100:
            assert weight_of(ema.average) == pytest.approx(0.5, rel=1e-5)
        ema.update(network, images_seen=10_000 + images, batch_size=batch_size)
    assert weight_of(ema.average) == pytest.approx(0.25, rel=1e-5)


def test_ramp_up() -> None:
    """At first the half-life is 5 % of the images seen."""
    ema = EMA(nn.Linear(1, 1), halflife=1000, rampup=0.05)
    assert ema.decay(images_seen=0, batch_size=10) == 0
    assert ema.decay(images_seen=200, batch_size=10) == pytest.approx(0.5)
    assert ema.decay(images_seen=400, batch_size=10) == pytest.approx(0.5**0.5)
    assert ema.decay(images_seen=20_000, batch_size=10) == pytest.approx(0.5**0.01)
    assert ema.decay(images_seen=10**9, batch_size=10) == pytest.approx(0.5**0.01)


def test_first_update_is_the_network_itself(network: nn.Module) -> None:
    ema = EMA(network, halflife=100, rampup=0.05)
    nn.init.constant_(network[0].weight, 3.7)  # type: ignore[index]
    ema.update(network, images_seen=0, batch_size=10)
    assert weight_of(ema.average) == weight_of(network)


def test_buffers_are_taken_over_and_the_average_is_frozen(network: nn.Module) -> None:
    ema = EMA(network, halflife=100, rampup=0.05)
    assert not ema.average.training and network.training
    assert not any(p.requires_grad for p in ema.average.parameters())
    assert all(p.requires_grad for p in network.parameters())
    network(torch.tensor([[1.0], [3.0]]))
    ema.update(network, images_seen=10_000, batch_size=10)
    buffers = dict(ema.average.named_buffers())
    assert buffers["1.running_mean"].item() == pytest.approx(0.2) and buffers["1.num_batches_tracked"].item() == 1

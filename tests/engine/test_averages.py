"""The rules of the moving averages, and what a move changes."""

import numpy as np
import pytest
import torch
from torch import nn

from onestep.engine.averages import (
    Averages,
    ConstantDecay,
    HalfLife,
    PowerFunction,
    check_names,
    folder_of,
    power_of,
)


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
    averages = Averages(network, {"ema": HalfLife(halflife=100, rampup=0.05)})
    nn.init.zeros_(network[0].weight)  # type: ignore[index]
    for images in range(0, 200, batch_size):
        if images == 100:
            assert weight_of(averages.networks["ema"]) == pytest.approx(0.5, rel=1e-5)
        averages.after_update(network)  # nothing for this rule
        averages.after_iteration(network, images_seen=10_000 + images, batch_size=batch_size)
    assert weight_of(averages.networks["ema"]) == pytest.approx(0.25, rel=1e-5)


def test_ramp_up() -> None:
    """At first the half-life is 5 % of the images seen."""
    rule = HalfLife(halflife=1000, rampup=0.05)
    assert rule.decay(images_seen=0, batch_size=10) == 0
    assert rule.decay(images_seen=200, batch_size=10) == pytest.approx(0.5)
    assert rule.decay(images_seen=400, batch_size=10) == pytest.approx(0.5**0.5)
    assert rule.decay(images_seen=20_000, batch_size=10) == pytest.approx(0.5**0.01)
    assert rule.decay(images_seen=10**9, batch_size=10) == pytest.approx(0.5**0.01)


def test_a_constant_decay_counts_updates() -> None:
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(network.weight)
    averages = Averages(network, {"ema": ConstantDecay(0.9)})
    nn.init.zeros_(network.weight)
    for _ in range(5):
        averages.after_update(network)
    averages.after_iteration(network, images_seen=100, batch_size=10)  # nothing for this rule
    assert weight_of(averages.networks["ema"]) == pytest.approx(0.9**5, rel=1e-12)


@pytest.mark.parametrize("sigma_rel, gamma", [(0.05, 16.97), (0.1, 6.94)])
def test_a_power_function_averages_by_its_profile(sigma_rel: float, gamma: float) -> None:
    """EDM2's two gammas (arXiv 2312.02696, sec. 3.1); the weights of all iterations are those of t^gamma."""
    assert power_of(sigma_rel) == pytest.approx(gamma, abs=0.005)
    count, rule = 400, PowerFunction(sigma_rel)
    weights = np.zeros(count)
    for index in range(count):
        weights *= rule.decay(images_seen=10 * index, batch_size=10)
        weights[index] = 1 - weights.sum()
    edges = np.linspace(0, 1, count + 1) ** (rule.gamma + 1)
    assert weights == pytest.approx(np.diff(edges), abs=1e-12)
    times = (np.arange(count) + 0.5) / count
    assert np.sqrt(weights @ times**2 - (weights @ times) ** 2) == pytest.approx(sigma_rel, rel=1e-3)


@pytest.mark.parametrize(
    "rule", [HalfLife(halflife=100, rampup=0.05), PowerFunction(0.05)], ids=["half-life", "power function"]
)
def test_first_update_is_the_network_itself(network: nn.Module, rule: HalfLife | PowerFunction) -> None:
    averages = Averages(network, {"ema": rule})
    nn.init.constant_(network[0].weight, 3.7)  # type: ignore[index]
    averages.after_iteration(network, images_seen=0, batch_size=10)
    assert weight_of(averages.networks["ema"]) == weight_of(network)


def test_buffers_are_taken_over_and_the_average_is_frozen(network: nn.Module) -> None:
    averages = Averages(network, {"slow": HalfLife(halflife=100, rampup=0.05), "constant": ConstantDecay(0.5)})
    assert network.training and all(p.requires_grad for p in network.parameters())
    network(torch.tensor([[1.0], [3.0]]))
    averages.after_update(network)
    averages.after_iteration(network, images_seen=10_000, batch_size=10)
    for average in averages.networks.values():
        assert not average.training and not any(p.requires_grad for p in average.parameters())
        buffers = dict(average.named_buffers())
        assert buffers["1.running_mean"].item() == pytest.approx(0.2) and buffers["1.num_batches_tracked"].item() == 1


def test_the_evaluated_weights_and_their_folders(network: nn.Module) -> None:
    several = Averages(network, {"fast": ConstantDecay(0.5), "slow": ConstantDecay(0.9)})
    assert list(several.evaluated(network)) == ["fast", "slow"]
    names = list(several.weights(network))
    assert [folder_of(names, name) for name in names] == ["generator", "generator_slow", "generator_raw"]
    none = Averages(network, {})
    assert none.evaluated(network) == none.weights(network) == {"raw": network}
    assert folder_of(["raw"], "raw") == "generator"


@pytest.mark.parametrize("name", ["raw", "teacher", "student", "", "a/b", "..", "a.b", "0.9999", "é", "two words"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^averages\..*: expected a name of letters, digits and _"):
        check_names(["ema", name])

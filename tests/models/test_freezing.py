"""Patterns of parameters that are not trained."""

import pytest
from torch import nn

from onestep.models.freezing import describe_trained, freeze
from tests.helpers.edm_models import tiny_denoiser


class Tied(nn.Module):
    """Two layers with one weight, and a third that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.outer.weight = self.inner.weight
        self.last.requires_grad_(False)


def trained(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    "patterns, left",
    [
        ((), {"inner.weight", "inner.bias", "outer.bias"}),
        (("*.bias",), {"inner.weight"}),
        (("outer.weight",), {"inner.bias", "outer.bias"}),  # the other name of inner.weight
        (("inner.?ias", "o*.bias"), {"inner.weight"}),
    ],
)
def test_what_the_patterns_freeze(patterns: tuple[str, ...], left: set[str]) -> None:
    network = Tied()
    freeze([network], patterns, "frozen")
    assert trained(network) == left


@pytest.mark.parametrize(
    "patterns, message",
    [
        (("*.bias", "outr.*"), "frozen: 'outr.*' matches no trained parameter; the closest names are outer.weight, "),
        (("Inner.*",), "frozen: 'Inner.*' matches no trained parameter; the closest names are inner."),
        (("last.*",), "frozen: 'last.*' matches no trained parameter; the closest names are "),
        (("*.bias", "*weight"), "frozen=[*.bias, *weight] freezes all parameters: leave some to be trained"),
    ],
)
def test_patterns_that_are_refused(patterns: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        freeze([Tied()], patterns, "frozen")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_several_networks_and_their_number_of_parameters() -> None:
    networks = [Tied(), tiny_denoiser()]
    freeze(networks, ["*.conv*.weight", "inner.weight"], "frozen")
    assert trained(networks[0]) == {"inner.bias", "outer.bias"}
    frozen = {name for name, _ in networks[1].named_parameters()} - trained(networks[1])
    assert len(frozen) > 10 and all(".conv" in name and name.endswith(".weight") for name in frozen)
    assert describe_trained(networks[0]) == "8 of 34 (23.5 %)"  # 4 + 4 of 16 + 4 + 4 + 8 + 2

"""Moving averages of a network's weights, several at once, each by a rule of its own."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Generic

import numpy as np
import torch
from annotated_types import Gt, Lt
from torch import nn

from onestep.models.base import Network, copy_trained
from onestep.ranges import Decay, Positive, checked
from onestep.reading import one_line

#: The name of the weights that are no average.
RAW = "raw"
_TAKEN = (RAW, "teacher", "student")  # by the sides of a summary
#: The standard deviation of a profile as a fraction of the training's length; that of equal weights is 12^-1/2.
RelativeWidth = Annotated[float, Gt(0), Lt(12**-0.5)]


class Rule(ABC):
    """How much of an average remains in a move towards the network's weights.

    Attributes:
        after_each_update: True for a move after each update, of the critics too; False for one after each iteration.
    """

    after_each_update = False

    @abstractmethod
    def decay(self, images_seen: int, batch_size: int) -> float:
        """The weight of the old average in a move with ``batch_size`` images, after ``images_seen`` images."""


@checked
class HalfLife(Rule):
    """An old weight counts half after ``halflife`` images (EDM, arXiv 2206.00364; SiD, SiDA, Uni-Instruct).

    Args:
        halflife: in images, after the ramp-up.
        rampup: upper bound of the half-life as a fraction of the images seen so far (EDM's training loop: 0.05). Early
            in a run the average thus forgets the initial weights.
    """

    def __init__(self, halflife: Positive, rampup: Positive) -> None:
        self.halflife, self.rampup = halflife, rampup

    def decay(self, images_seen: int, batch_size: int) -> float:
        """0 at the first image."""
        halflife = min(self.halflife, self.rampup * images_seen)
        return 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0


@checked
class ConstantDecay(Rule):
    """The same decay in each update, of the generator or of the critics, as FastGen counts its iterations.

    Args:
        decay: the weight of the old average, such as 0.9999.
    """

    after_each_update = True

    def __init__(self, decay: Decay) -> None:
        self._decay = decay

    def decay(self, images_seen: int, batch_size: int) -> float:
        """The constant."""
        return self._decay


@checked
class PowerFunction(Rule):
    """The average of all weights since the start with the profile ``t^gamma`` (EDM2, arXiv 2312.02696, sec. 3.1).

    Args:
        sigma_rel: the profile's standard deviation as a fraction of the training's length, such as 0.05.
    """

    def __init__(self, sigma_rel: RelativeWidth) -> None:
        self.gamma = power_of(sigma_rel)

    def decay(self, images_seen: int, batch_size: int) -> float:
        """0 at the first image."""
        return float((images_seen / (images_seen + batch_size)) ** (self.gamma + 1))


def power_of(sigma_rel: float) -> float:
    """The power gamma >= 0 of the profile ``t^gamma`` on [0, 1] with the standard deviation ``sigma_rel``.

    ``sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))``, which falls from 1/12 at gamma = 0; gamma is the only
    root of this cubic above -1.
    """
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class Averages(Generic[Network]):
    """Moving averages of one network by name; the first is the one that a run reports and samples from.

    Each is a copy of the network that shares its frozen weights. No reference to the network is kept.

    Args:
        network: the averaged network.
        rules: by name, see :func:`check_names`; empty for no average.
    """

    def __init__(self, network: Network, rules: Mapping[str, Rule]) -> None:
        check_names(rules)
        self.rules = dict(rules)
        self.networks: dict[str, Network] = {name: copy_trained(network).eval().requires_grad_(False) for name in rules}

    def evaluated(self, network: Network) -> dict[str, Network]:
        """The averages or, without any, the raw weights of the ``network``, by name."""
        return self.networks or {RAW: network}

    def weights(self, network: Network) -> dict[str, Network]:
        """The averages and the raw weights of the ``network``, by name."""
        return {**self.networks, RAW: network}

    def after_update(self, network: Network) -> None:
        """Move the averages of a constant decay. Call it after each update of any network that was not skipped."""
        self._move(network, after_each_update=True)

    def after_iteration(self, network: Network, images_seen: int, batch_size: int) -> None:
        """Move the others. Call it after each iteration that was not skipped, also if the network stands still.

        Args:
            network: the averaged network.
            images_seen: images before this iteration.
            batch_size: images of this iteration.
        """
        self._move(network, False, images_seen, batch_size)

    def _move(self, network: Network, after_each_update: bool, images_seen: int = 0, batch_size: int = 0) -> None:
        for name, rule in self.rules.items():
            if rule.after_each_update is after_each_update:
                move(self.networks[name], network, rule.decay(images_seen, batch_size))


def check_names(names: Iterable[str]) -> None:
    """Check the names of averages, which files and keys of a summary contain.

    Raises:
        ValueError: for one with other characters than ASCII letters, digits and _, or that means something else.
    """
    for name in names:
        if not (name.isascii() and name.isidentifier()) or name in _TAKEN:
            raise ValueError(
                f"averages.{one_line(name)}: expected a name of letters, digits and _, which does not begin with a "
                f"digit, and none of {', '.join(_TAKEN)}"
            )


def folder_of(names: Sequence[str], name: str) -> str:
    """The folder, in a run's, of the generator with the weights ``name``; ``names`` are all, the reported one first."""
    return "generator" if name == names[0] else f"generator_{name}"


@torch.no_grad()
def move(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the weights of ``average`` by ``1 - decay`` towards those that ``network`` trains, and copy its buffers."""
    pairs = zip(average.parameters(), network.parameters(), strict=True)
    trained = [(ours, theirs) for ours, theirs in pairs if theirs.requires_grad]
    # FastGen's operation too: its recorded averages are equal to the last bit.
    torch._foreach_lerp_([ours for ours, _ in trained], [theirs for _, theirs in trained], 1 - decay)
    for ours, theirs in zip(average.buffers(), network.buffers(), strict=True):
        ours.copy_(theirs)

"""Power-function averages of weights, and their synthesis after a training (EDM2, arXiv 2312.02696)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt, Le

from onestep.models.base import DenoiserNetwork
from onestep.models.loading import load_teacher
from onestep.ranges import Images, checked

#: The standard deviation of an average's profile in units of the training so far; 12^-1/2 weighs all of it equally.
RelativeWidth = Annotated[float, Gt(0), Le(12**-0.5)]


@checked
@dataclass(frozen=True)
class PowerFunction:
    """The average in which the weights after t of T images count in proportion to t^gamma (sec. 3.1, eq. 121).

    The early weights are forgotten as the training goes on, without a ramp-up.

    Args:
        sigma_rel: standard deviation of this profile divided by T.

    Raises:
        ValueError: for a standard deviation that is not above 0, or above that of equal weights.
    """

    sigma_rel: RelativeWidth

    @property
    def gamma(self) -> float:
        """The exponent: the largest root of sigma_rel^2 (gamma + 2)^2 (gamma + 3) = gamma + 1 (eq. 123)."""
        precision = self.sigma_rel**-2
        return float(np.roots([1, 7, 16 - precision, 12 - precision]).real.max())

    def decay(self, images_seen: int, batch_size: int) -> float:
        """The weight of the old average in an update with ``batch_size`` images, after ``images_seen`` images.

        It is (1 - batch_size / T)^(gamma + 1) (eq. 127), and 0 at the first update.
        """
        return float((images_seen / (images_seen + batch_size)) ** (self.gamma + 1))


@dataclass(frozen=True)
class Average:
    """An average after ``images`` images of a training."""

    images: Images
    profile: PowerFunction


def synthesis_weights(averages: Sequence[Average], target: Average) -> list[float]:
    """The coefficients with which ``averages`` sum up to nearly the ``target`` (sec. 3.2, algorithm 3); their sum is 1.

    They are the least-squares fit of the target's profile by the others'.

    Raises:
        ValueError: without averages, for two equal ones, or a target later than all of them.
    """
    if not averages or target.images > (last := max(average.images for average in averages)):
        raise ValueError(
            f"target: an average after {target.images:,} images cannot be made of averages up to "
            f"{last if averages else 0:,}: choose an earlier one"
        )
    if len(set(averages)) < len(averages):
        raise ValueError("two of the averages are of the same images and sigma_rel: expected different ones")
    products = np.array([[_product(one, other) for other in averages] for one in averages])
    solution = np.linalg.solve(products, np.array([_product(average, target) for average in averages]))
    return [float(weight) for weight in solution / solution.sum()]


def _product(one: Average, other: Average) -> float:
    """The integral over time of the product of two profiles, (gamma + 1) t^gamma / T^(gamma + 1) up to T (eq. 151)."""
    first, last = sorted((one, other), key=lambda average: average.images)
    a, b = first.profile.gamma, last.profile.gamma
    return (a + 1) * (b + 1) / (a + b + 1) * (first.images / last.images) ** b / last.images


def synthesize(files: Sequence[str | Path], averages: Sequence[Average], target: Average) -> DenoiserNetwork:
    """The network with nearly the average ``target`` of a training, from files with ``averages`` of it.

    Args:
        files: of each of the averages: a folder, or a file of EDM2's format. They are read one after another, as data.
        averages: what the files hold.
        target: the average to synthesise, at most as late as the last of the files.

    Raises:
        ValueError: see :func:`synthesis_weights`; for a file that cannot be read, or one of another network.
    """
    total: dict[str, torch.Tensor] = {}
    for file, weight in zip(files, synthesis_weights(averages, target), strict=True):
        network = load_teacher(str(file))
        shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
        if total and shapes != {name: value.shape for name, value in total.items()}:
            raise ValueError(f"{file} holds another network than {files[0]}: expected averages of one training")
        for name, parameter in network.named_parameters():
            term = weight * parameter.double()  # the weights have both signs, and can be large
            total[name] = total[name] + term if name in total else term
    network.load_state_dict({name: value.float() for name, value in total.items()}, strict=False)
    return network

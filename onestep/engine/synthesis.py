"""Averages of other widths out of the saved ones of a training (EDM2, arXiv 2312.02696, sec. 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from onestep.engine.averages import RelativeWidth, power_of
from onestep.models.base import DenoiserNetwork
from onestep.models.loading import load_teacher
from onestep.ranges import Images, checked


@checked
@dataclass(frozen=True)
class Average:
    """An average of a training by a power function, see :class:`onestep.engine.averages.PowerFunction`.

    Args:
        images: images seen so far.
        sigma_rel: standard deviation of its profile as a fraction of them.

    Raises:
        ValueError: for a number out of its range.
    """

    images: Images
    sigma_rel: RelativeWidth


def synthesis_weights(averages: Sequence[Average], target: Average) -> list[float]:
    """The coefficients with which ``averages`` sum up to nearly the ``target`` (algorithm 3); their sum is 1.

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
    a, b = power_of(first.sigma_rel), power_of(last.sigma_rel)
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

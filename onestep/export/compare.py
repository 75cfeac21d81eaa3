"""The images of an exported generator against those of the original."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from onestep.evaluation.generate import check_finite
from onestep.export.graph import GeneratorGraph

DType = Literal["float32", "float16", "int8"]
#: The images of an exported generator, from inputs by name.
Runner = Callable[[dict[str, Tensor]], Tensor]
#: The seeds of the batches that are compared: of one image, and of several.
_BATCHES = ([0], [1, 2, 3])


@dataclass(frozen=True)
class Tolerance:
    """The allowed differences of images in [-1, 1]; where an image goes beyond, they grow with the largest value.

    Args:
        largest: of one value.
        rms: the root of the mean square over all values.
    """

    largest: float
    rms: float


TOLERANCES: dict[DType, Tolerance] = {
    "float32": Tolerance(1e-4, 1e-4),
    "float16": Tolerance(5e-2, 5e-3),
    "int8": Tolerance(1.0, 5e-2),  # a pixel at an edge may change its side
}


@torch.no_grad()
def compare(graph: GeneratorGraph, run: Runner) -> Tolerance:
    """The largest differences between the images of ``run`` and of ``graph``, of two batch sizes; NaN is infinite.

    Raises:
        ValueError: for images of another shape, or an original that is not finite.
    """
    largest = rms = 0.0
    for seeds in _BATCHES:
        inputs = graph.inputs(seeds)
        expected = graph(*inputs.values())
        check_finite(expected, seeds)
        images = run(inputs)
        if images.shape != expected.shape:
            raise ValueError(f"{len(seeds)} images have the shape {tuple(images.shape)}, not {tuple(expected.shape)}")
        difference = (images - expected).nan_to_num(torch.inf) / expected.abs().max().clamp(min=1)
        largest = max(largest, float(difference.abs().max()))
        rms = max(rms, float(difference.square().mean().sqrt()))
    return Tolerance(largest, rms)

"""SinSR's terms for a student that also maps images to noise (Wang et al. 2024, arXiv 2311.14760).

SinSR trains one network in both directions: at its highest level from noise to an image, as any student here, and at
its lowest from the image to the noise. A denoiser's prediction at a low level s is nearly its input, so that the noise
is read from what it removes,

    z(x) = (x - D(x, s, y)) / s.

With EDM's preconditioning, ``D = c_skip x + c_out F``, this is ``s / (s^2 + sigma_data^2) x - (c_out / s) F``, which
tends to ``-F(x)``, the raw network's output with the other sign: its target there is the negative noise. A residual
shift adds y to input and prediction alike and leaves z as it is. Where a network predicts the noise itself, z is its
output. A teacher is never asked for the noise of a clean image, which has none; these terms train the student to
answer with the noise that its first step maps to the image.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.models.base import DenoiserNetwork
from onestep.models.dropout import dropout
from onestep.models.generator import Generator
from onestep.objectives.reconstruction import mean_distance
from onestep.objectives.terms import GeneratorTerm, TermInputs
from onestep.ranges import PositiveRate, checked


def latents_of(network: DenoiserNetwork, x: Tensor, condition: Condition) -> Tensor:
    """The noise z(x) [B, C, H, W] that ``network`` reads from images ``x`` [B, C, H, W] in data units."""
    sigma = network.sigma_min
    level = torch.full((len(x),), sigma, device=x.device)
    return (x - network(x, level, condition)) / sigma


class _Inversion(GeneratorTerm):
    """A term that reads noise from images."""

    def check_student(self, student: Any, teacher: Any) -> None:
        if not isinstance(student, Generator):
            raise ValueError(
                f"it reads the noise of an image from the network of a Generator, and a {type(student).__name__} has "
                "none: leave the term out"
            )
        if student.network_evaluations > 1:
            raise ValueError(
                f"generator.later_sigmas={student.later_sigmas}: a sample of several steps is no function of one "
                "noise: set generator.later_sigmas=[], or leave the term out"
            )
        if student.start == "image_alone":
            raise ValueError(
                "generator.start=image_alone: noise has no effect on this generator, and none can be read from an "
                "image: set generator.start=image or noise, or leave the term out"
            )


@checked
class Inverse(_Inversion):
    """The squared error of the noise that the student reads from the teacher's sample: ``|z(F(z, y)) - z|^2``.

    F is the teacher's sampler, so that z and F(z, y) are a pair; the loss is a mean over dimensions. SinSR's error is
    that of ``x_T = y + kappa sqrt(eta_T) z``, which is ``kappa^2 eta_T`` times this one.

    Args:
        weight: of the term.
    """

    needs_ground_truth, needs_pairs = False, True

    def __init__(self, weight: PositiveRate) -> None:
        self.weight = weight

    def losses(self, inputs: TermInputs) -> Tensor:
        assert inputs.pair is not None  # a run without pairs was rejected
        latents, condition, x_teacher = inputs.pair
        found = latents_of(inputs.student.denoiser, x_teacher, condition)
        return mean_distance(found, latents, "l2", 0.0)


@checked
class Consistency(_Inversion):
    """The distances of the ground truth from the student's sample of its noise: ``|f(sg[z(x)], y) - x|^2``.

    SinSR's consistency preserving term. The noise is read without a graph (sg): the gradient passes through the sample
    alone.

    Args:
        weight: of the term.
        distances: terms of sample and ground truth (:class:`onestep.objectives.reconstruction.PairedTerm`) by name,
            which are summed with their weights.

    Raises:
        ValueError: without any.
    """

    def __init__(self, weight: PositiveRate, distances: Mapping[str, Any]) -> None:
        if not distances:
            raise ValueError("distances={}: expected one at least, such as reconstruction")
        self.weight, self.distances = weight, distances
        self.reads_pixels = any(one.reads_pixels for one in distances.values())

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Those of the distances."""
        return {
            f"distances.{name}.{setting}": network
            for name, one in self.distances.items()
            for setting, network in one.networks.items()
        }

    def losses(self, inputs: TermInputs) -> Tensor:
        x_real, student = inputs.x_real, inputs.student
        assert x_real is not None  # data without images was rejected
        with torch.no_grad(), dropout(student.networks, active=False):
            latents = latents_of(student.denoiser, x_real, inputs.condition)
        restored = student.simulate([latents], inputs.condition)
        return torch.stack([one.weight * one(restored, x_real) for one in self.distances.values()]).sum(0)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        for one in self.distances.values():
            one.check(image_shape)

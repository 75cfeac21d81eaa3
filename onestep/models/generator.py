"""The generator: a denoiser, evaluated once at a fixed high noise level, or a few times at falling levels."""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import FiniteFloat
from torch import Tensor, nn

from onestep.denoiser import NO_CONDITION, Condition, check_condition
from onestep.files import write_text
from onestep.models.base import DenoiserNetwork
from onestep.models.describe import describe
from onestep.models.dropout import dropout
from onestep.models.weights import Weights, arguments_of, load_network, read_config
from onestep.ranges import UpscaleFactor
from onestep.reading import one_line, read_json
from onestep.seeding import check_classes, noise_from_latents

SETTINGS = "generator.json"
#: The modules of the classes in a config; imported at first use, as diffusers takes longer to import than torch.
_CLASSES = {
    "EDMDenoiser": "onestep.models.edm.denoiser",
    "DiffusersDenoiser": "onestep.models.diffusers.denoiser",
}
_MAX_STEPS = 8  # few-step students use fewer; more indicate a mistake

#: The input of a generator's first step: noise, the condition's image and noise, or that image alone.
Start = Literal["noise", "image", "image_alone"]
#: The noise between the steps of a generator: new noise, or that which the network's prediction leaves.
Renoise = Literal["stochastic", "deterministic"]


@dataclass
class StepLevels:
    """A generator's steps and its classes in a file, as :class:`Generator` takes them."""

    sigma_init: FiniteFloat
    later_sigmas: list[FiniteFloat] = field(default_factory=list)
    classes: list[int] | None = None
    renoise: Renoise = "stochastic"


@dataclass
class GeneratorRecord(StepLevels):
    """What a generator's folder says of it beside its network's config.

    Attributes:
        start: see :class:`Generator`.
        upscale_factor: how many times larger than its low-resolution images its samples are; None for a generator of
            another kind.
    """

    start: Start = "noise"
    upscale_factor: UpscaleFactor | None = None


class Generator(nn.Module):
    """``x_generated = D(sigma_init * z, sigma_init, condition)`` with ``z ~ N(0, I)`` (SiD, arXiv 2404.04057, sec. 3).

    A network of diffusers gets ``z`` itself in the first step, as in its pipelines, see its ``init_noise_sigma``.

    Each later step adds noise to the image x and predicts again, ``x = D(x + sigma * z, sigma, condition)``. The noise
    ``z`` is fresh (DMD2, arXiv 2405.14867, sec. 4.4), or deterministic: that of the step before, ``(x_sigma - x) /
    sigma`` of its input, level and output. The latter is Euler's step for the network's ODE, which is DDIM's (arXiv
    2010.02502, eq. 13); a generator equal to its teacher then draws as ``EulerSampler``.

    Args:
        denoiser: the network, usually initialised as a copy of the teacher.
        sigma_init: noise level of the first step, in data units.
        later_sigmas: noise levels of the later steps, strictly descending; empty for a one-step generator.
        classes: the classes that it is trained for, if they are fewer than the network's; None for all.
        start: input of the first step: ``sigma_init * z``; with the image y of the condition "image",
            ``y + sigma_init * z`` (ResShift, SinSR), or "image_alone", y (OSEDiff): ``sigma_init`` is then the level
            that the network is told, and the latents have no effect on a generator of one step. A network without an
            image condition sees y there alone; its ``ignored_keys`` are set.
        renoise: "stochastic" for fresh noise between the steps, or "deterministic".

    Attributes:
        upscale_factor: see :class:`GeneratorRecord`.

    Raises:
        ValueError: for noise levels outside the network's range or not descending, more than eight steps, classes
            that the network does not have.
    """

    upscale_factor: float | None = None

    def __init__(
        self,
        denoiser: DenoiserNetwork,
        sigma_init: float,
        later_sigmas: Sequence[float] = (),
        classes: Sequence[int] | None = None,
        start: Start = "noise",
        renoise: Renoise = "stochastic",
    ) -> None:
        super().__init__()
        if start != "noise" and "image" not in denoiser.condition_keys:
            denoiser.ignored_keys = ("image",)
        if classes is not None:
            check_classes(classes, denoiser.label_dim)
        if not denoiser.sigma_min <= sigma_init <= denoiser.sigma_max:
            raise ValueError(
                f"sigma_init={sigma_init} is outside the noise levels of the network, "
                f"[{denoiser.sigma_min}, {denoiser.sigma_max}]"
            )
        if len(later_sigmas) >= _MAX_STEPS:
            raise ValueError(
                f"later_sigmas={list(later_sigmas)} makes {1 + len(later_sigmas)} steps: expected at most {_MAX_STEPS}"
            )
        for above, sigma in pairwise((sigma_init, *later_sigmas)):
            if not denoiser.sigma_min <= sigma < above:
                raise ValueError(
                    f"later_sigmas={list(later_sigmas)}: {sigma} must be below {above}, the level before it (the first "
                    f"is sigma_init), and at least {denoiser.sigma_min}, the network's lowest"
                )
        self.denoiser = denoiser
        self.sigma_init = sigma_init
        self.later_sigmas = list(later_sigmas)
        self.classes = None if classes is None else list(classes)
        self.start = start
        self.renoise = renoise

    @property
    def network_evaluations(self) -> int:
        """Network evaluations per sample: the number of steps."""
        return 1 + len(self.later_sigmas)

    @property
    def noises(self) -> int:
        """The noises that a sample is a function of: the latents, and those of stochastic later steps."""
        return 1 if self.renoise == "deterministic" else self.network_evaluations

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of one sample's noise, (C, H, W)."""
        return self.denoiser.image_shape

    @property
    def networks(self) -> list[nn.Module]:
        """The denoiser alone."""
        return [self.denoiser]

    def forward(
        self, latents: Tensor, condition: Condition = NO_CONDITION, noises: Iterator[Tensor] | None = None
    ) -> Tensor:
        """Images [B, C, H, W] in data units from ``latents`` [B, C, H, W] ~ N(0, I), after all steps.

        Stochastic later steps use ``noises`` [B, C, H, W]. If it is None, a sample's noise is a function of its latent,
        so that an image does not depend on the rest of the batch.
        """
        later = noise_from_latents(latents) if noises is None else (noise.to(latents) for noise in noises)
        return self._run([latents, *islice(later, self.noises - 1)], self.network_evaluations, condition)

    def simulate(self, noises: Sequence[Tensor], condition: Condition = NO_CONDITION) -> Tensor:
        """Images [B, C, H, W] after the first ``len(noises)`` steps, with a graph of the last of these alone.

        DMD2's backward simulation (arXiv 2405.14867, sec. 4.5): a step is trained on the outputs of the steps before
        it, as in sampling; those steps run without a graph and without dropout.

        Args:
            noises: noise [B, C, H, W] ~ N(0, I) of each step, the latents first; at most one per step. Deterministic
                steps read the latents alone.
            condition: condition of the images; empty for none.

        Raises:
            ValueError: for more noises than steps.
        """
        return self._run(noises, len(noises), condition)

    def _run(self, noises: Sequence[Tensor], steps: int, condition: Condition) -> Tensor:
        """Images after the first ``steps`` steps, as :meth:`simulate`; of ``noises`` only those that they read."""
        if steps > self.network_evaluations:
            raise ValueError(f"noise for {steps} steps: this generator has {self.network_evaluations}")
        latents, *fresh = noises
        sigma, *later = (self.sigma_init, *self.later_sigmas)[:steps]
        x_sigma = self._start(latents, condition)
        with torch.no_grad(), dropout([self.denoiser], active=False):
            for index, below in enumerate(later):
                x = self._predict(x_sigma, sigma, condition)
                noise = fresh[index] if self.renoise == "stochastic" else (x_sigma - x) / sigma
                x_sigma, sigma = x + below * noise, below
        # Autocast of older versions of torch reuses the weights that it cast without a graph (pytorch issue 112583):
        # the last step would have no gradient.
        torch.clear_autocast_cache()
        return self._predict(x_sigma, sigma, condition)

    def _predict(self, x_sigma: Tensor, sigma: float, condition: Condition) -> Tensor:
        return self.denoiser(x_sigma, torch.full(x_sigma.shape[:1], sigma, device=x_sigma.device), condition)

    def _start(self, latents: Tensor, condition: Condition) -> Tensor:
        """The input of the first step."""
        of_noise = self.denoiser.init_noise_sigma(self.sigma_init) * latents
        if self.start == "noise":
            return of_noise
        check_condition(condition, [*self.denoiser.condition_keys, *self.denoiser.ignored_keys], required=True)
        image = condition["image"].to(latents)
        return image if self.start == "image_alone" else image + of_noise

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the network's weights as safetensors, its config, and the steps into ``folder``."""
        self.denoiser.save_pretrained(folder)
        settings: dict[str, Any] = {"sigma_init": self.sigma_init, "later_sigmas": self.later_sigmas}
        settings |= {} if self.classes is None else {"classes": list(self.classes)}
        settings |= {} if self.start == "noise" else {"start": self.start}
        settings |= {} if self.renoise == "stochastic" else {"renoise": self.renoise}
        settings |= {} if self.upscale_factor is None else {"upscale_factor": self.upscale_factor}
        write_text(Path(folder) / SETTINGS, json.dumps(settings) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, denoiser: DenoiserNetwork | None = None) -> Self:
        """Load a generator that :meth:`save_pretrained` wrote, in eval mode.

        Args:
            folder: the generator's folder.
            denoiser: a network of a class outside this package, whose copy gets the weights; None for the package's
                classes.

        Raises:
            ValueError: if the folder holds no generator, or weights of another network.
        """
        settings = read_generator_record(folder)
        network = load_denoiser(folder) if denoiser is None else copy.deepcopy(denoiser).load_weights(folder)
        try:
            generator = cls(
                network, settings.sigma_init, settings.later_sigmas, settings.classes, settings.start, settings.renoise
            ).eval()
        except ValueError as error:
            raise ValueError(f"{Path(folder) / SETTINGS}: {error}") from error
        generator.upscale_factor = settings.upscale_factor
        return generator


def read_generator_record(folder: str | Path) -> GeneratorRecord:
    """The settings of the generator in ``folder``, without its network.

    Raises:
        ValueError: if the folder holds no generator.
    """
    settings = Path(folder) / SETTINGS
    if not settings.is_file():
        raise ValueError(
            f"{folder} holds no one-step generator: expected {SETTINGS} next to its weights; {describe(Path(folder))}"
        )
    return read_json(settings, GeneratorRecord)


def load_denoiser(folder: str | Path) -> DenoiserNetwork:
    """The denoiser that ``save_pretrained`` wrote into ``folder``, in eval mode.

    Raises:
        ValueError: if the folder holds no denoiser, or its weights do not fit its config.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"no checkpoint at {str(folder)!r}: expected a folder with config.json and safetensors weights, such as "
            f"the 'teacher' or 'generator' folder of a finished run; {describe(folder)}"
        )
    name = read_json(folder / "config.json", dict[str, Any]).get("_class_name")
    if name not in list(_CLASSES):
        raise ValueError(
            f"{folder / 'config.json'} describes a {one_line(name)}, expected one of {', '.join(_CLASSES)}: use "
            "teacher=diffusers for a network of diffusers, and Generator.from_pretrained(folder, denoiser) for other "
            "classes"
        )
    read_config(folder / "config.json")  # within limits
    arguments = read_json(folder / "config.json", arguments_of(_class(name))).model_dump(exclude_unset=True)
    return load_network(lambda: _class(name)(**arguments), Weights.find(folder))


def _class(name: str) -> Any:
    return getattr(import_module(_CLASSES[name]), name)

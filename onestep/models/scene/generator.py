"""Solids as functions of the noise: an amortised generator of scenes."""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from annotated_types import Len
from pydantic import BaseModel
from torch import Tensor, nn

from onestep.denoiser import NO_CONDITION, Condition
from onestep.models.describe import describe
from onestep.models.scene.scene import NUMBERS, Scene, density_of, holds_scene
from onestep.models.weights import Weights, load_network, save_network
from onestep.ranges import NonNegative, Width, checked
from onestep.reading import read_json
from onestep.seeding import seeded_inputs

_SOLIDS = 64  # of a generator, that a run judges and an export writes
_GAIN = 1.676  # makes SiLU of numbers ~ N(0, 1) of mean square 1 again
SETTINGS, _WEIGHTS = "scene_generator.json", "scene_generator"


@checked
class SceneGenerator(nn.Module):
    """A network that draws a solid from noise, before the cameras of a scene; its samples are renders.

    The solid's logits are those of the scene plus what a perceptron makes of the code, the last entries of the
    latents. The first ones turn and shift the camera as they do for the scene, so that one solid has many renders.

    Args:
        scene: the cameras, the grid, and the solid that all others are changes of; with one object.
        code: entries of the latents that the solid is a function of.
        widths: of the hidden layers.
        randomness: standard deviation of the initial solids' logits around the scene's.

    Attributes:
        noise_shape: of the latents of one sample.
        network: maps codes [B, code] to logits [B, N^3].

    Raises:
        ValueError: for a scene of several objects.
    """

    condition_keys = ("labels",)
    denoises_latents = False
    network_evaluations = 1
    networks: Sequence[nn.Module] = ()

    def __init__(
        self, scene: Scene, code: Width, widths: Annotated[Sequence[Width], Len(1, 8)], randomness: NonNegative
    ) -> None:
        super().__init__()
        if len(scene.logits) > 1:
            raise ValueError(f"scene.objects={len(scene.logits)}: expected 1, as the noise draws the solids")
        self.scene, self.code = scene, code
        self.image_shape, self.label_dim, self.classes = scene.image_shape, scene.label_dim, scene.classes
        self.noise_shape = (NUMBERS - 1 + code,)  # without the entry that chooses one of several objects
        self.config = {"scene": scene.config, "code": code, "widths": list(widths), "randomness": randomness}
        hidden = [nn.Linear(*sizes) for sizes in pairwise([code, *widths])]
        last = nn.Linear(widths[-1], scene.logits.numel(), bias=False)  # the scene's logits are its bias
        gains = [1.0, *[_GAIN] * (len(hidden) - 1)]
        for layer, gain in zip(hidden, gains, strict=True):
            nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(last.weight, std=randomness * _GAIN / last.in_features**0.5)
        self.network = nn.Sequential(*(part for layer in hidden for part in (layer, nn.SiLU())), last)

    def forward(
        self, latents: Tensor, condition: Condition = NO_CONDITION, noises: Iterator[Tensor] | None = None
    ) -> Tensor:
        """Renders [B, C, H, W] in [-1, 1] for ``latents`` [B, 5 + code] ~ N(0, I); there are no later steps.

        Raises:
            ValueError: for a class without a view, and as :meth:`simulate`.
        """
        self.scene.check_views(condition)
        return self.simulate([latents], condition)

    def simulate(self, noises: Sequence[Tensor], condition: Condition = NO_CONDITION) -> Tensor:
        """The renders [B, C, H, W] for the latents, the only ones of ``noises``, see :meth:`Scene.simulate`."""
        (latents,) = noises
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.to(self.scene.logits)
            degrees, shift, _ = self.scene.cameras(latents[:, :NUMBERS], condition)
            return self.scene.show(density_of(self.logits(latents)), degrees, shift)

    def logits(self, latents: Tensor) -> Tensor:
        """The logits [B, N, N, N] of the solids of ``latents`` [B, 5 + code], as a scene's."""
        return self.scene.logits + self.network(latents[:, -self.code :]).view(-1, *self.scene.logits.shape[1:])

    @torch.no_grad()
    def draw(self, count: int) -> Scene:
        """The solids of the seeds 0 to ``count - 1``, as the objects of a scene without a graph."""
        latents, _ = seeded_inputs(list(range(count)), self.noise_shape, 0)
        return self.scene.with_depths(F.softplus(self.logits(latents.to(self.scene.logits))))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights as safetensors, and the settings as JSON, into ``folder``."""
        save_network(self, Path(folder), json.dumps(self.config), _WEIGHTS, SETTINGS)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a generator that :meth:`save_pretrained` wrote, in eval mode.

        Raises:
            ValueError: if the folder holds no generator of scenes, or weights of another one.
        """
        if not (Path(folder) / SETTINGS).is_file():
            raise ValueError(f"{folder} holds no generator of scenes: expected {SETTINGS}; {describe(Path(folder))}")
        settings = read_json(Path(folder) / SETTINGS, _Settings)
        weights = Weights.find(Path(folder), base=_WEIGHTS)
        return load_network(lambda: cls(**{**dict(settings), "scene": Scene(**settings.scene)}), weights)


class _Settings(BaseModel):
    """The arguments of :class:`SceneGenerator` in a file."""

    scene: dict[str, Any]
    code: Width
    widths: Annotated[list[Width], Len(1, 8)]
    randomness: NonNegative


#: Students that render solids.
AnyScene = Scene | SceneGenerator


def holds_any_scene(folder: str | Path) -> bool:
    """True for a folder of :meth:`SceneGenerator.save_pretrained` or :meth:`Scene.save_pretrained`."""
    return holds_scene(folder) or (Path(folder) / SETTINGS).is_file()


def load_any_scene(folder: str | Path) -> AnyScene:
    """What :func:`holds_any_scene` found, in eval mode; raises as its ``from_pretrained``."""
    return Scene.from_pretrained(folder) if holds_scene(folder) else SceneGenerator.from_pretrained(folder)


def solids_of(student: AnyScene) -> Scene:
    """The objects of a scene; of a generator those of the first seeds, without a graph."""
    return student if isinstance(student, Scene) else student.draw(_SOLIDS)

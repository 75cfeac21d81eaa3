"""Scenes as students: densities that a camera drawn from the noise renders."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Len, MinLen
from torch import Tensor, nn

from onestep.denoiser import NO_CONDITION, Condition
from onestep.models.describe import describe
from onestep.models.scene.render import Rays, blob, cast_rays, opacity, optical_depth, rotations
from onestep.models.weights import Weights, arguments_of, load_network, save_network
from onestep.ranges import Count, NonNegative, NonNegativeInt, Positive, Side, checked
from onestep.reading import read_json
from onestep.seeding import check_classes

SETTINGS, _WEIGHTS = "scene.json", "scene"
#: A latent's entries: azimuth, elevation, roll, shift to the right, shift downwards, object.
NUMBERS = 6

#: Azimuth, elevation and roll in degrees.
Angles = Annotated[Sequence[Annotated[float, Ge(-360), Le(360)]], Len(3, 3)]
Jitter = Annotated[Sequence[Annotated[float, Ge(0), Le(180)]], Len(3, 3)]
#: Voxels along a side, of which a grid has the third power.
GridSize = Annotated[int, Ge(2), Le(256)]
#: From the centre of a cube whose corners are sqrt(3) away.
Distance = Annotated[float, Gt(1.75), Le(1000)]


@checked
class Scene(nn.Module):
    """Solids of one grey material, each a density on a grid, whose renders are a student's samples.

    A pixel is ``2 (1 - exp(-optical depth)) - 1``: -1 is empty, and matter alone makes it brighter. The
    condition's class chooses a view, and the latents z ~ N(0, I) turn and shift its camera by uniform amounts, the
    normal cdf of its entries; the last one chooses the object.

    Args:
        image_shape: (C, H, W) of a render, with H = W; all channels are equal.
        label_dim: number of the teacher's classes.
        classes: those that have a view; no other is rendered.
        views: (azimuth, elevation, roll) of each of them in degrees, see
            :func:`onestep.models.scene.render.rotations`.
        size: voxels N along a side of the grid.
        objects: number of solids.
        jitter: largest turn of the camera from its view, in degrees of azimuth, elevation and roll.
        shift: largest shift of the camera to each side, in units of half the image.
        distance: of a perspective camera from the centre, in the same units; None for an orthographic one.
        oversampling: rays along a side of a pixel, whose mean is rendered.
        depth: optical depth through the middle of the initial ball. Above 3 hardly any light passes, and no gradient.
        randomness: standard deviation of the initial logits around the ball's, which tells several objects apart.

    Attributes:
        noise_shape: of the latents of one sample.
        logits: [objects, N, N, N]; the optical depth through a voxel is ``softplus(logits)``.

    Raises:
        ValueError: for images that are not square, or another number of views than of classes.
    """

    condition_keys = ("labels",)
    denoises_latents = False
    network_evaluations = 1  # one step, a render
    networks: Sequence[nn.Module] = ()
    noise_shape = (NUMBERS,)
    samples_per_voxel = 1  # on a ray

    def __init__(
        self,
        image_shape: Annotated[Sequence[Side], Len(3, 3)],
        label_dim: Count,
        classes: Annotated[Sequence[NonNegativeInt], MinLen(1)],
        views: Annotated[Sequence[Angles], MinLen(1)],
        size: GridSize,
        objects: Annotated[int, Ge(1), Le(4096)],
        jitter: Jitter,
        shift: Annotated[float, Ge(0), Le(1)],
        distance: Distance | None,
        oversampling: Annotated[int, Ge(1), Le(8)],
        depth: Positive,
        randomness: NonNegative,
    ) -> None:
        super().__init__()
        self.config = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        channels, height, width = self.image_shape = (image_shape[0], image_shape[1], image_shape[2])
        if height != width:
            raise ValueError(f"image_shape={list(image_shape)}: expected square images, of a cube's sides")
        check_classes(classes, label_dim)
        if len({*classes}) < len(classes) or len(classes) != len(views):
            raise ValueError(
                f"classes={list(classes)} have {len(views)} views: expected different classes and a view of each"
            )
        self.label_dim, self.classes, self.views = label_dim, list(classes), [list(view) for view in views]
        self.jitter, self.shift, self.distance, self.oversampling = list(jitter), shift, distance, oversampling
        start = logits_of(blob(size, depth) * (2 / size)).float().expand(objects, -1, -1, -1)
        self.logits = nn.Parameter(start + randomness * torch.randn(start.shape))

    @property
    def density(self) -> Tensor:
        """The optical depth of all objects [objects, N, N, N] per unit of length, of which the cube's side has 2."""
        return density_of(self.logits)

    def forward(
        self, latents: Tensor, condition: Condition = NO_CONDITION, noises: Iterator[Tensor] | None = None
    ) -> Tensor:
        """Renders [B, C, H, W] in [-1, 1] for ``latents`` [B, 6] ~ N(0, I); there are no later steps.

        Raises:
            ValueError: for a class without a view, and as :meth:`simulate`.
        """
        self.check_views(condition)
        return self.simulate([latents], condition)

    def check_views(self, condition: Condition) -> None:
        """Check that all classes of a condition have a view.

        Raises:
            ValueError: naming those that have none.
        """
        labels = condition.get("labels", self.logits.new_zeros(0, self.label_dim))
        if unseen := sorted({*labels.argmax(1).tolist()} - {*self.classes}):
            raise ValueError(f"classes {unseen} have no view, only {self.classes} have: set student.classes and views")

    def simulate(self, noises: Sequence[Tensor], condition: Condition = NO_CONDITION) -> Tensor:
        """The renders [B, C, H, W] for the latents, the only ones of ``noises``.

        The classes must have a view. A training makes sure of it before it starts, as a check here would wait for the
        device in each iteration.

        Raises:
            ValueError: for a condition that is not of classes.
        """
        (latents,) = noises
        with torch.autocast(latents.device.type, enabled=False):
            return self.render(*self.cameras(latents.to(self.logits), condition))

    def cameras(self, latents: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """Angles [B, 3] in degrees, shifts [B, 2] and objects [B] of ``latents`` [B, 6]; raises as :meth:`simulate`."""
        if list(condition) != ["labels"]:
            raise ValueError(
                f"a scene takes a condition of labels, got {', '.join(condition) or 'none'}: use a teacher and data "
                "with classes"
            )
        labels = condition["labels"].to(latents)
        uniform = torch.special.ndtr(latents)
        degrees = labels[:, self.classes] @ latents.new_tensor(self.views)
        degrees = degrees + (2 * uniform[:, :3] - 1) * latents.new_tensor(self.jitter)
        objects = (uniform[:, 5] * len(self.logits)).long().clamp(max=len(self.logits) - 1)
        return degrees, (2 * uniform[:, 3:5] - 1) * self.shift, objects

    def render(self, degrees: Tensor, shift: Tensor, objects: Tensor, resolution: int | None = None) -> Tensor:
        """Renders [B, C, H, W] in [-1, 1] from any cameras.

        Args:
            degrees: azimuth, elevation and roll [B, 3].
            shift: of the camera to the right and downwards [B, 2].
            objects: their numbers [B].
            resolution: of a picture with one ray for a pixel; None for the samples' resolution and rays.
        """
        return self.show(grids_of(self.density, objects), degrees, shift, resolution)

    def show(self, density: Tensor, degrees: Tensor, shift: Tensor, resolution: int | None = None) -> Tensor:
        """Renders [B, C, H, W] of any ``density`` [B, N, N, N]; the others are those of :meth:`render`."""
        channels, side, _ = self.image_shape
        oversampling = self.oversampling if resolution is None else 1
        samples = self.samples_per_voxel * density.shape[1]
        rays = cast_rays(rotations(degrees), shift, (resolution or side) * oversampling, samples, self.distance)
        image = self.absorbed(density, rays)[:, None]
        return (F.avg_pool2d(image, oversampling) * 2 - 1).expand(-1, channels, -1, -1)

    def absorbed(self, density: Tensor, rays: Rays) -> Tensor:
        """The part [B, H, W] of the light of each ray that a ``density`` [B, N, N, N] absorbs."""
        return opacity(optical_depth(density, rays))

    def initial(self) -> "Scene":
        """The scene before its training; where it was random, another draw."""
        with torch.random.fork_rng(devices=[]):
            return Scene(**self.config).to(self.logits).requires_grad_(False)

    def with_depths(self, depths: Tensor) -> "Scene":
        """Objects of these optical depths through each voxel [K, N, N, N] before the same cameras, without a graph."""
        other = Scene(**{**self.config, "objects": len(depths)}).to(self.logits)
        other.logits = nn.Parameter(logits_of(depths).to(self.logits), requires_grad=False)
        return other

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the logits as safetensors, and the settings as JSON, into ``folder``."""
        save_network(self, Path(folder), json.dumps(self.config), _WEIGHTS, SETTINGS)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a scene that :meth:`save_pretrained` wrote, in eval mode.

        Raises:
            ValueError: if the folder holds no scene, or weights of another one.
        """
        if not holds_scene(folder):
            raise ValueError(f"{folder} holds no scene: expected {SETTINGS}; {describe(Path(folder))}")
        settings: Any = read_json(Path(folder) / SETTINGS, arguments_of(Scene))
        return load_network(lambda: cls(**settings.model_dump()), Weights.find(Path(folder), base=_WEIGHTS))


def density_of(logits: Tensor) -> Tensor:
    """The optical depth per unit of length, of which a cube's side has 2, of logits [B, N, N, N]."""
    return F.softplus(logits) * (logits.shape[1] / 2)


def grids_of(grids: Tensor, objects: Tensor) -> Tensor:
    """The grids [B, ...] of the ``objects`` [B]; a single one is expanded without a copy."""
    return grids.expand(len(objects), *grids.shape[1:]) if len(grids) == 1 else grids.index_select(0, objects)


def logits_of(depths: Tensor) -> Tensor:
    """The inverse of softplus, for optical depths above 1e-6 and that of thinner voxels."""
    depths = depths.clamp(min=1e-6)
    return depths + torch.log(-torch.expm1(-depths))


def holds_scene(folder: str | Path) -> bool:
    """True for a folder of :meth:`Scene.save_pretrained`."""
    return (Path(folder) / SETTINGS).is_file()

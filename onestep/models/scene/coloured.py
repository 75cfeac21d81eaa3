"""Coloured scenes as students: grids of a density and of what it emits, seen by the cameras of the conditions."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, Len
from torch import Tensor, nn

from onestep.denoiser import NO_CONDITION, Condition
from onestep.models.describe import describe
from onestep.models.scene.render import blob, cast_rays, composite, rotations
from onestep.models.scene.scene import GridSize, density_of, grids_of, logits_of
from onestep.models.weights import Weights, arguments_of, load_network, save_network
from onestep.ranges import NonNegative, Positive, Side, checked
from onestep.reading import read_json

SETTINGS, _WEIGHTS = "coloured_scene.json", "coloured_scene"


@checked
class ColouredScene(nn.Module):
    """Solids that emit features, such as colours or the latents of an autoencoder, whose renders are the samples.

    The features are in the data's units and have no bounds, as in the latent scene of SJC (arXiv 2212.00774). A
    condition's ``camera`` [B, 3] is azimuth and elevation in degrees, see
    :func:`onestep.models.scene.render.rotations`, and the distance from the centre in half sides of the cube, infinite
    for an orthographic camera. The noise chooses the object.

    Args:
        image_shape: (C, H, W) of a render, with H = W. A training replaces None by the teacher's.
        size: voxels N along a side of the grids.
        objects: number of solids.
        oversampling: rays along a side of a pixel, whose mean is rendered.
        depth: optical depth through the middle of the initial ball, see :class:`onestep.models.scene.scene.Scene`.
        randomness: standard deviation of the initial features, in data units.
        background: of all channels, in data units; of a learned background at the start.
        background_size: pixels along a side of a learned background, which is the same behind all views and bilinear
            between the pixels' centres; 0 for a constant one.

    Attributes:
        noise_shape: of the noise of one sample.
        logits: [objects, N, N, N]; the optical depth through a voxel is ``softplus(logits)``.
        features: [objects, C, N, N, N], what a voxel emits.
        background: [objects, C, b, b].

    Raises:
        ValueError: for images that are not square, or no shape.
    """

    condition_keys = ("camera",)
    denoises_latents = False  # it denoises nothing; the decoder of its renders is the teacher's
    label_dim = 0
    network_evaluations = 1  # one step, a render
    networks: Sequence[nn.Module] = ()
    noise_shape = (1,)
    pipeline = None

    def __init__(
        self,
        image_shape: Annotated[Sequence[Side], Len(3, 3)] | None,
        size: GridSize,
        objects: Annotated[int, Ge(1), Le(64)],
        oversampling: Annotated[int, Ge(1), Le(8)],
        depth: Positive,
        randomness: NonNegative,
        background: Annotated[float, Ge(-100), Le(100)],
        background_size: Annotated[int, Ge(0), Le(1024)],
    ) -> None:
        super().__init__()
        self.config = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        if image_shape is None:
            raise ValueError("image_shape=null: only a training replaces it by the teacher's: set [C, H, W]")
        channels, height, width = self.image_shape = (image_shape[0], image_shape[1], image_shape[2])
        if height != width:
            raise ValueError(f"image_shape={list(image_shape)}: expected square images, of a cube's sides")
        self.oversampling = oversampling
        start = logits_of(blob(size, depth) * (2 / size)).float()
        self.logits = nn.Parameter(start.repeat(objects, 1, 1, 1))
        self.features = nn.Parameter(randomness * torch.randn(objects, channels, size, size, size))
        behind = torch.full((objects, channels, max(1, background_size), max(1, background_size)), float(background))
        self.background = nn.Parameter(behind, requires_grad=background_size > 0)

    @property
    def density(self) -> Tensor:
        """The optical depth of all objects [objects, N, N, N] per unit of length, of which the cube's side has 2."""
        return density_of(self.logits)

    def forward(
        self, latents: Tensor, condition: Condition = NO_CONDITION, noises: Iterator[Tensor] | None = None
    ) -> Tensor:
        """Renders [B, C, H, W] in data units for ``latents`` [B, 1] ~ N(0, I); there are no later steps."""
        return self.simulate([latents], condition)

    def simulate(self, noises: Sequence[Tensor], condition: Condition = NO_CONDITION) -> Tensor:
        """The renders [B, C, H, W] for the latents, the only ones of ``noises``.

        Raises:
            ValueError: for a condition without a camera.
        """
        (latents,) = noises
        if "camera" not in condition:
            raise ValueError(
                f"a coloured scene takes a condition with a camera, got {', '.join(condition) or 'none'}: use data "
                "with cameras, such as data=view_prompts"
            )
        with torch.autocast(latents.device.type, enabled=False):
            count = len(self.logits)
            objects = (torch.special.ndtr(latents[:, 0].to(self.logits)) * count).long().clamp(max=count - 1)
            return self.render(condition["camera"].to(self.logits), objects)

    def render(self, cameras: Tensor, objects: Tensor) -> Tensor:
        """Renders [B, C, H, W] in data units by ``cameras`` [B, 3] of the ``objects`` of these numbers [B]."""
        side = self.image_shape[1] * self.oversampling
        angles = F.pad(cameras[:, :2], (0, 1))  # no roll
        centred = cameras.new_zeros(len(cameras), 2)
        rays = cast_rays(rotations(angles), centred, side, self.logits.shape[1], cameras[:, 2])
        behind = F.interpolate(grids_of(self.background, objects), (side, side), mode="bilinear")
        image = composite(grids_of(self.density, objects), grids_of(self.features, objects), rays, behind)
        return F.avg_pool2d(image, self.oversampling)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the grids as safetensors, and the settings as JSON, into ``folder``."""
        save_network(self, Path(folder), json.dumps(self.config), _WEIGHTS, SETTINGS)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a scene that :meth:`save_pretrained` wrote, in eval mode.

        Raises:
            ValueError: if the folder holds no coloured scene, or weights of another one.
        """
        if not holds_coloured_scene(folder):
            raise ValueError(f"{folder} holds no coloured scene: expected {SETTINGS}; {describe(Path(folder))}")
        settings: Any = read_json(Path(folder) / SETTINGS, arguments_of(ColouredScene))
        return load_network(lambda: cls(**settings.model_dump()), Weights.find(Path(folder), base=_WEIGHTS))


def holds_coloured_scene(folder: str | Path) -> bool:
    """True for a folder of :meth:`ColouredScene.save_pretrained`."""
    return (Path(folder) / SETTINGS).is_file()

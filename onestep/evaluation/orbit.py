"""Pictures of a coloured scene from all sides, decoded."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onestep.files import atomic_file
from onestep.images import to_uint8
from onestep.models.scene.coloured import ColouredScene
from onestep.reports.turntable import save_animation

_FRAMES, _MILLISECONDS = 48, 80
_ELEVATION = 15.0  # degrees, of threestudio's test views


@dataclass(frozen=True)
class OrbitReport:
    """Writes the pictures and the grids of a trained scene.

    Args:
        distance: of the camera from the centre, in half sides of the cube; infinite for an orthographic one.
        decode: maps renders to images [B, C, H, W] in [-1, 1], both on the CPU; None for renders that are images.
    """

    distance: float
    decode: Callable[[Tensor], Tensor] | None

    @torch.no_grad()
    def __call__(self, scene: ColouredScene, folder: Path) -> dict[str, object]:
        """Write ``turntable.gif`` of the first object, and ``density.npz`` of all, into ``folder``; no verdict."""
        azimuths = torch.arange(_FRAMES) * (360 / _FRAMES)
        others = torch.tensor([_ELEVATION, self.distance]).expand(_FRAMES, -1)
        cameras = torch.cat([azimuths[:, None], others], 1).to(scene.logits)
        first = torch.zeros(1, dtype=torch.long, device=cameras.device)
        renders = torch.cat([scene.render(camera, first).cpu() for camera in cameras.split(1)])
        images = renders if self.decode is None else self.decode(renders)
        save_animation(to_uint8(images), [_MILLISECONDS] * _FRAMES, folder / "turntable.gif")
        with atomic_file(folder / "density.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, density=scene.density.cpu().numpy(), features=scene.features.cpu().numpy())
        return {}

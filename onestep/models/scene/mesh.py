"""The surface of a scene's objects: what of a soft density a solid thing would be."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.files import atomic_file
from onestep.models.scene.render import Rays, cast_rays, opacity, rotations, values_along
from onestep.models.scene.scene import Scene


class OpaqueScene(Scene):
    """The objects of a scene before the same cameras, opaque inside of their surfaces and empty outside.

    A pixel is the part of its rays that meet the object: the silhouette of its mesh.

    Attributes:
        levels: [objects], the density at their surfaces.
    """

    samples_per_voxel = 2
    levels: Tensor

    @classmethod
    def of(cls, scene: Scene) -> Self:
        """That of ``scene``, with the levels of :func:`surface_levels`."""
        opaque = cls(**scene.config)
        opaque.logits, opaque.levels = scene.logits, surface_levels(scene)
        return opaque

    @property
    def density(self) -> Tensor:
        """In units of the density at the surface."""
        return super().density / self.levels[:, None, None, None]

    def absorbed(self, density: Tensor, rays: Rays) -> Tensor:
        return (values_along(density, rays).amax(1) > 1).to(density)


@torch.no_grad()
def surface_levels(scene: Scene) -> Tensor:
    """The densities [objects] at which surfaces agree best with the renders of the density from the scene's views.

    A silhouette is lit where the largest density of a ray is above the level. Of all levels, the one is taken with the
    least squared difference of the silhouettes from the opacities, of which the largest counts as 1.
    """
    size = scene.logits.shape[1]
    degrees = scene.logits.new_tensor(scene.views)
    samples = OpaqueScene.samples_per_voxel * size
    rays = cast_rays(rotations(degrees), degrees.new_zeros(len(degrees), 2), 2 * size, samples, scene.distance)
    levels = []
    for density in scene.density:
        values = values_along(density.expand(len(degrees), -1, -1, -1), rays)
        opacities = opacity(values.sum(1) * rays.steps).flatten()
        largest, order = values.amax(1).flatten().sort(descending=True)
        # Lit pixels add (1 - opacity)^2 to the difference in place of opacity^2.
        gains = (2 * opacities[order] / opacities.max() - 1).cumsum(0)[:-1]
        gains[largest[:-1] == largest[1:]] = -torch.inf  # no level is between them
        place = gains.argmax()
        levels.append((largest[place] + largest[place + 1]) / 2)
    return torch.stack(levels)


def mesh_of(density: Tensor, level: float) -> Any:
    """The closed surface at which a ``density`` [N, N, N] has the value ``level``, a mesh of the package trimesh.

    Its coordinates are those of glTF: x to the right of the front view, y upwards, and z towards its camera. The
    scene's cube is [-1, 1]^3. The density falls to 0 over the half voxel outside of it, where the surface closes.

    Raises:
        ImportError: without the extra ``mesh``.
    """
    from skimage.measure import marching_cubes
    from trimesh import Trimesh

    places, faces, _, _ = marching_cubes(F.pad(density, (1,) * 6).numpy(force=True), level)
    zyx = (places - 0.5) * (2 / len(density)) - 1
    return Trimesh(zyx[:, ::-1] * np.array([1, -1, -1]), faces, process=False)


def save_solids(scene: Scene, folder: Path, meshes: Iterable[int]) -> None:
    """Write the densities of all objects, and the surfaces of those with a number in ``meshes``.

    ``density.npz`` has the ``density`` [objects, z, y, x] per unit of length, and the ``level`` [objects] at the
    surfaces. The meshes are ``mesh.ply`` and ``mesh.glb``, or ``mesh_NUMBER.ply`` and so on of several objects. A
    warning says how to get them where the extra ``mesh`` is not installed.
    """
    densities, levels = scene.density.detach(), surface_levels(scene)
    with atomic_file(folder / "density.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, density=densities.numpy(force=True), level=levels.numpy(force=True))
    for number in meshes:
        name = "mesh" if len(densities) == 1 else f"mesh_{number}"
        try:
            mesh = mesh_of(densities[number], float(levels[number]))
        except ImportError as error:
            warnings.warn(f"{name} is not written: pip install 'onestep[mesh]' ({error})", stacklevel=2)
            return
        for suffix in ("ply", "glb"):
            with atomic_file(folder / f"{name}.{suffix}") as temporary:
                mesh.export(temporary)

"""The surfaces of scenes: their level, silhouettes and meshes."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from onestep.models.scene.mesh import OpaqueScene, mesh_of, save_solids, surface_levels
from onestep.models.scene.render import voxel_centres
from onestep.models.scene.scene import Scene
from tests.helpers.scenes import VIEWS, scene

#: To the right and downwards in the ambigram's views, by hand in the coordinates of glTF.
AXES = [((1, 0, 0), (0, -1, 0)), ((0, 0, 1), (0, -1, 0)), ((0, 0, -1), (1, 0, 0))]


@pytest.fixture
def extra() -> None:
    """The packages of the extra mesh."""
    pytest.importorskip("skimage", reason="needs the extra mesh")
    pytest.importorskip("trimesh", reason="needs the extra mesh")


def random_solid(size: int = 16) -> Scene:
    """Smooth random matter with no symmetry."""
    noise = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, (size,) * 3, mode="trilinear")[0]
    cameras = scene(classes=[3, 7, 4], views=VIEWS, size=size, jitter=[10, 10, 10]).requires_grad_(False)
    return cameras.with_depths((smooth - 0.5).relu() * 1.5)


@pytest.mark.usefixtures("extra")
def test_a_ball_has_its_volume_and_area() -> None:
    radii = voxel_centres(32).square().sum(3).sqrt()
    mesh = mesh_of(1 - radii, 0.4)  # the ball of radius 0.6
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.01)  # positive: the faces look outwards
    assert mesh.area == pytest.approx(4 * math.pi * 0.6**2, rel=0.01)


@pytest.mark.usefixtures("extra")
def test_a_box_is_where_it_is_in_gltf() -> None:
    """That of the renders' test. It touches three sides of the cube, and is closed there."""
    density = torch.zeros(16, 16, 16)
    density[:12, :4, 8:] = 2.0  # z, y, x: from -1 to 0.5, from -1 to -0.5, from 0 to 1
    mesh = mesh_of(density, 1.0)
    assert mesh.is_watertight
    assert mesh.bounds.tolist() == [[0, 0.5, -0.5], [1, 1, 1]]  # y and z point to the other side
    # Edges and corners are cut off, to half a voxel at each side of them: of one voxel an octahedron is left.
    voxel = 1 / 8
    assert mesh.volume == pytest.approx(1.5 * 1.0 * 0.5 - 4 * (1.5 + 1.0 + 0.5) * voxel**2 / 8 + 2 / 3 * voxel**3)


@pytest.mark.usefixtures("extra")
def test_the_silhouettes_are_those_of_the_mesh() -> None:
    """Against the triangles of the mesh, each filled by itself in the plane of the view."""
    solid = random_solid()
    mesh = mesh_of(solid.density[0], float(surface_levels(solid)[0]))
    assert mesh.is_watertight
    seen = OpaqueScene.of(solid).render(torch.tensor(VIEWS), torch.zeros(3, 2), torch.zeros(3).long(), 24)[:, 0] > 0
    pixels = np.stack(np.meshgrid(*[(np.arange(24) + 0.5) / 12 - 1] * 2), -1).reshape(-1, 1, 2)
    for silhouette, axes in zip(seen.numpy(), AXES, strict=True):
        a, b, c = np.moveaxis(mesh.triangles @ np.array(axes).T, 1, 0)
        sides = [_cross(end - start, pixels - start) for start, end in ((a, b), (b, c), (c, a))]
        filled = np.any(np.all(np.array(sides) >= 0, 0) | np.all(np.array(sides) <= 0, 0), 1).reshape(24, 24)
        assert (filled == silhouette).mean() > 0.98  # but for pixels at an edge
        assert (filled[:, ::-1] == silhouette).mean() < 0.8 and (filled[::-1] == silhouette).mean() < 0.8


def _cross(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left[..., 0] * right[..., 1] - left[..., 1] * right[..., 0]


def test_no_other_level_agrees_better() -> None:
    """With the renders, over levels from nothing to everything."""
    solid = random_solid()
    opaque = OpaqueScene.of(solid)
    cameras = (torch.tensor(VIEWS), torch.zeros(3, 2), torch.zeros(3).long(), 24)
    grey = (solid.render(*cameras) + 1) / 2
    found = opaque.levels.clone()

    def difference(level: Tensor) -> float:
        opaque.levels = level
        return float(((opaque.render(*cameras) + 1) / 2 - grey / grey.max()).square().mean())

    others = [difference(found * factor) for factor in torch.linspace(0.05, 3, 60)]
    assert difference(found) < min(others) + 1e-3 and max(others) > difference(found) + 0.05
    assert surface_levels(solid.with_depths(torch.full((2, 8, 8, 8), 0.3))).isfinite().all()


def test_levels_of_several_objects_are_their_own() -> None:
    thin, thick = (torch.zeros(8, 8, 8), torch.zeros(8, 8, 8))
    thin[2:6, 2:6, 2:6], thick[2:6, 2:6, 2:6] = 0.1, 1.0
    solids = scene().requires_grad_(False).with_depths(torch.stack([thin, thick]))
    levels = surface_levels(solids)
    assert 0 < levels[0] < 0.1 * 4 < levels[1] < 1.0 * 4  # a unit of length has four voxels
    opaque = OpaqueScene.of(solids)
    assert torch.allclose(opaque.density[1], solids.density[1] / levels[1])
    views = opaque.render(torch.zeros(2, 3), torch.zeros(2, 2), torch.arange(2), 8)
    assert torch.equal(views[0], views[1]) and {*views.unique().tolist()} == {-1.0, 1.0}


@pytest.mark.usefixtures("extra")
def test_files_of_several_objects(tmp_path: Path) -> None:
    import trimesh

    solid = random_solid(8)
    save_solids(solid.with_depths(torch.stack([solid.density[0], solid.density[0].flip(0)])), tmp_path, range(2))
    names = {"density.npz", "mesh_0.ply", "mesh_0.glb", "mesh_1.ply", "mesh_1.glb"}
    assert {path.name for path in tmp_path.iterdir()} == names
    meshes = [trimesh.load(tmp_path / f"mesh_0.{suffix}", force="mesh") for suffix in ("ply", "glb")]
    stored = np.load(tmp_path / "density.npz")
    expected = mesh_of(torch.from_numpy(stored["density"][0]), float(stored["level"][0]))
    for mesh in meshes:
        assert mesh.volume == pytest.approx(expected.volume, rel=1e-5)
        assert np.allclose(mesh.bounds, expected.bounds, atol=1e-6)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.warns(UserWarning, match=r"^mesh is not written: pip install 'onestep\[mesh\]'"):
        save_solids(random_solid(8), tmp_path, [0])
    assert [path.name for path in tmp_path.iterdir()] == ["density.npz"]

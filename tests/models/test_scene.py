"""Scenes: their renders against closed forms, and their cameras."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.models.scene.render import blob, cast_rays, opacity, optical_depth, rotations
from onestep.models.scene.scene import Scene
from onestep.seeding import one_hot
from tests.helpers.scenes import FRONT, SIDE, TOP, scene

CENTRED = torch.zeros(1, 2, dtype=torch.float64)


def depth_of(density: Tensor, view: tuple[float, ...], resolution: int, samples: int, distance: float | None = None,
             shift: Tensor = CENTRED) -> Tensor:  # fmt: skip
    """The optical depth [H, W] of one density [N, N, N] from one view."""
    rotation = rotations(torch.tensor([view], dtype=density.dtype))
    return optical_depth(density[None], cast_rays(rotation, shift.to(density), resolution, samples, distance))[0]


def test_the_axes_of_a_box() -> None:
    """A box at x in [0, 1], y in [-1, -0.5], z in [-1, 0.5], of density 2, is seen where it is, as long as it is."""
    density = torch.zeros(8, 8, 8, dtype=torch.float64)
    density[:6, :2, 4:] = 2.0  # z, y, x
    for view, rows, columns, length in (
        (FRONT, slice(0, 2), slice(4, 8), 1.5),  # rows downwards are y, columns to the right x
        (SIDE, slice(0, 2), slice(2, 8), 1.0),  # to the right -z
        ((180.0, 0.0, 0.0), slice(0, 2), slice(0, 4), 1.5),  # the mirror image of the front
        (TOP, slice(2, 8), slice(4, 8), 0.5),  # downwards -z
        ((0.0, 90.0, -90.0), slice(4, 8), slice(0, 6), 0.5),  # downwards x, to the right z
    ):
        expected = torch.zeros(8, 8, dtype=torch.float64)
        expected[rows, columns] = 2.0 * length
        assert torch.allclose(depth_of(density, view, 8, 8), expected, atol=1e-12), view


@pytest.mark.parametrize("view", [(45.0, 0.0, 0.0), (30.0, 20.0, 10.0), (0.0, -70.0, 200.0)])
def test_a_ball_is_the_same_from_everywhere(view: tuple[float, ...]) -> None:
    """The depth of a ball of radius r at the distance b from its centre is 2 sqrt(r^2 - b^2)."""
    places = (torch.arange(64, dtype=torch.float64) + 0.5) / 32 - 1
    squares = places[:, None, None] ** 2 + places[:, None] ** 2 + places**2
    ball = (0.5 + (0.6 - squares.sqrt()) * 32).clamp(0, 1)  # of radius 0.6, smoothed over a voxel
    pixels = (torch.arange(16, dtype=torch.float64) + 0.5) / 8 - 1
    expected = 2 * (0.36 - pixels[:, None] ** 2 - pixels**2).clamp(min=0).sqrt()
    errors = (depth_of(ball, view, 16, 64) - expected).abs()
    assert errors.max() < 0.04 and errors.mean() < 0.003  # the largest where a ray touches the ball


def test_a_turn_of_90_degrees_is_the_transposed_sum() -> None:
    density = torch.rand(6, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for view, summed in (
        (FRONT, density.sum(0)),
        (SIDE, density.sum(2).T.flip(1)),
        (TOP, density.sum(1).flip(0)),
        ((0.0, 0.0, 90.0), density.sum(0).T.flip(0)),
    ):
        assert torch.allclose(depth_of(density, view, 6, 6), summed / 3, atol=1e-12), view


def gaussian_depth(point: Tensor, direction: Tensor, radius: float) -> Tensor:
    """The integral of exp(-|x|^2 / 2 radius^2) along lines [..., 3], which direction of length 1 they have."""
    nearest = (point.square().sum(-1) - (point * direction).sum(-1) ** 2) / (2 * radius**2)
    return math.sqrt(2 * math.pi) * radius * torch.exp(-nearest)


def test_perspective_transmittance_is_that_of_the_quadrature() -> None:
    """Of a Gaussian ball, whose integral along any line is known; the camera is turned, 3 away from its centre."""
    size, distance, radius = 48, 3.0, 0.25
    density = blob(size, depth=1.0, radius=radius)
    density = density / density.max() * 4.0
    view = (25.0, -15.0, 5.0)
    found = torch.exp(-depth_of(density, view, 12, 96, distance))
    rotation = rotations(torch.tensor([view], dtype=torch.float64))[0]
    pixels = (torch.arange(12, dtype=torch.float64) + 0.5) / 6 - 1
    v, u = torch.meshgrid(pixels, pixels, indexing="ij")
    in_plane = torch.stack([u, v, torch.zeros_like(u)], -1) @ rotation.T
    eye = -distance * rotation[:, 2]
    expected = torch.exp(-4.0 * gaussian_depth(in_plane, F.normalize(in_plane - eye, dim=-1), radius))
    assert (found - expected).abs().max() < 5e-3
    assert expected.min() < 0.15  # dark through the middle
    # Any ray's steps end where the camera's plane leaves the cube: twice as many samples change nothing more.
    fine = torch.exp(-depth_of(density, view, 12, 768, distance))
    assert (found - fine).abs().max() < 1e-3


def test_the_camera_shifts() -> None:
    density = torch.rand(8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = depth_of(density, FRONT, 8, 8, shift=torch.tensor([[0.5, -0.25]], dtype=torch.float64))
    whole = depth_of(density, FRONT, 8, 8)
    assert torch.allclose(seen[1:, :6], whole[:7, 2:], atol=1e-12) and seen[0].abs().max() == 0


@pytest.mark.parametrize("distance", [None, 2.5])
def test_gradients_in_double_precision(distance: float | None) -> None:
    solid = scene(size=3, image_shape=[1, 2, 2], jitter=[20, 20, 20], shift=0.2, distance=distance).double()
    latents = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    condition = {"labels": torch.stack([one_hot(3, 10), one_hot(7, 10)]).double()}

    def render(logits: Tensor) -> Tensor:
        return torch.func.functional_call(solid, {"logits": logits}, (latents, condition))

    assert torch.autograd.gradcheck(render, (solid.logits.detach().requires_grad_(True),))


def test_a_pixel_is_the_absorbed_light_of_its_rays() -> None:
    """Half of a pixel covered by a black wall is grey: rays are averaged after the absorption."""
    solid = scene(size=2, image_shape=[1, 1, 1])
    with torch.no_grad():
        solid.logits.fill_(-1e3)
        solid.logits[0, :, :, 1] = 1e3
    image = solid.render(torch.tensor([FRONT]), torch.zeros(1, 2), torch.zeros(1).long())
    assert image.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.allclose(opacity(torch.tensor([0.0, math.log(2)])), torch.tensor([0.0, 0.5]))


def test_the_initial_ball_has_its_depth() -> None:
    solid = scene(size=32, depth=0.7, image_shape=[1, 32, 32], oversampling=1)
    image = solid.render(torch.tensor([FRONT]), torch.zeros(1, 2), torch.zeros(1).long())
    assert -math.log(1 - (image.max().item() + 1) / 2) == pytest.approx(0.7, rel=0.01)


def test_latents_are_cameras() -> None:
    """Angles, shifts and objects are uniform in their ranges around the view of the class."""
    solid = scene(jitter=[10, 20, 0], shift=0.1, objects=3)
    latents = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.stack([one_hot(3, 10), one_hot(7, 10)]).repeat(2000, 1)
    degrees, shift, objects = solid.cameras(latents, {"labels": labels})
    turned = degrees - torch.tensor([FRONT, SIDE]).repeat(2000, 1)
    for values, half in ((turned[:, 0], 10.0), (turned[:, 1], 20.0), (shift[:, 0], 0.1), (shift[:, 1], 0.1)):
        assert values.abs().max() <= half and values.std() == pytest.approx(half / math.sqrt(3), rel=0.03)
    assert turned[:, 2].abs().max() == 0
    assert np.bincount(objects.numpy()) == pytest.approx(np.full(3, 4000 / 3), rel=0.08)


def test_an_object_is_trained_by_its_renders_alone() -> None:
    solid = scene(objects=2, randomness=0.1)
    assert not torch.equal(solid.logits[0], solid.logits[1])
    latents = torch.zeros(3, 6)
    latents[:, 5] = 2.0
    solid(latents, {"labels": one_hot(3, 10).expand(3, -1)}).sum().backward()
    assert solid.logits.grad is not None
    assert solid.logits.grad[0].abs().max() == 0 and solid.logits.grad[1].abs().max() > 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_shape": [1, 8, 6]}, "image_shape=[1, 8, 6]: expected square images"),
        ({"classes": [3]}, "classes=[3] have 2 views: expected different classes and a view of each"),
        ({"classes": [3, 3]}, "classes=[3, 3] have 2 views"),
        ({"classes": [3, 10]}, "classes=[3, 10]: this network has 10 classes, numbered from 0"),
        ({"views": [FRONT, (0.0, 400.0, 0.0)]}, "views=[(0.0, 0.0, 0.0), (0.0, 400.0, 0.0)]: expected"),
        ({"distance": 1.0}, "distance=1.0: expected a number above 1.75"),
        ({"size": 1}, "size=1: expected an integer of at least 2"),
    ],
)
def test_scenes_that_there_are_not(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        scene(**options)
    assert message.replace("(", "[").replace(")", "]") in str(error.value).replace("(", "[").replace(")", "]")


def test_conditions_without_a_view() -> None:
    solid, latents = scene(), torch.zeros(2, 6)
    with pytest.raises(ValueError, match="a scene takes a condition of labels, got none"):
        solid(latents)
    with pytest.raises(ValueError, match=r"classes \[4\] have no view, only \[3, 7\] have"):
        solid(latents, {"labels": torch.stack([one_hot(3, 10), one_hot(4, 10)])})


def test_a_folder_of_a_scene(tmp_path: Path) -> None:
    solid = scene(objects=2, randomness=0.3, jitter=[5, 6, 7], distance=4.0)
    solid.save_pretrained(tmp_path)
    loaded = Scene.from_pretrained(tmp_path)
    assert (
        json.dumps(loaded.config) == json.dumps(solid.config)
        and torch.equal(loaded.logits, solid.logits)
        and not loaded.training
    )
    settings = json.loads((tmp_path / "scene.json").read_text())
    for change, message in (
        ({"objects": 3}, "logits"),
        ({"size": 10**6}, "size"),
        ({"classes": [3]}, "have 2 views"),
    ):
        (tmp_path / "scene.json").write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match=message):
            Scene.from_pretrained(tmp_path)
    (tmp_path / "scene.json").unlink()
    with pytest.raises(ValueError, match=r"holds no scene: expected scene\.json"):
        Scene.from_pretrained(tmp_path)

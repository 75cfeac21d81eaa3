"""Coloured scenes: compositing along rays against closed forms, cameras, and files."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from onestep.models.scene.coloured import ColouredScene
from onestep.models.scene.render import Rays, cast_rays, composite, opacity, optical_depth, rotations
from tests.helpers.scenes import FRONT, SIDE

ORTHOGRAPHIC = math.inf


def rays_of(view: tuple[float, ...], resolution: int, samples: int, distance: float = ORTHOGRAPHIC) -> Rays:
    """The rays of one camera, in float64."""
    angles = torch.tensor([view], dtype=torch.float64)
    far = torch.tensor([distance], dtype=torch.float64)
    return cast_rays(rotations(angles), angles.new_zeros(1, 2), resolution, samples, far)


def coloured(**options: object) -> ColouredScene:
    settings: dict[str, object] = {
        "image_shape": [3, 8, 8], "size": 8, "objects": 1, "oversampling": 1, "depth": 1.0, "randomness": 0.5,
        "background": -0.5, "background_size": 2,
    }  # fmt: skip
    return ColouredScene(**{**settings, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("distance", [ORTHOGRAPHIC, 2.5])
def test_a_homogeneous_box_emits_what_it_absorbs(distance: float) -> None:
    """Of a constant emission c before a background b the image is c (1 - exp(-depth)) + b exp(-depth)."""
    density = torch.full((1, 8, 8, 8), 0.7, dtype=torch.float64)
    colours, behind = torch.tensor([0.3, -2.0], dtype=torch.float64), torch.tensor([1.5, 0.25], dtype=torch.float64)
    rays = rays_of(FRONT, 4, 16, distance)
    image = composite(density, colours.view(1, 2, 1, 1, 1).expand(1, 2, 8, 8, 8), rays, behind.view(1, 2, 1, 1))
    depth = optical_depth(density, rays)
    expected = colours.view(2, 1, 1) * -torch.expm1(-depth) + behind.view(2, 1, 1) * torch.exp(-depth)
    assert torch.allclose(image[0], expected, atol=1e-14)
    if distance == ORTHOGRAPHIC:
        through = math.exp(-0.7 * 15.5 / 8)  # the first and last of 16 samples are where the density falls, at 3/4
        assert image[0, 0, 1, 1].item() == pytest.approx(0.3 * (1 - through) + 1.5 * through, abs=1e-12)


def test_the_nearer_slab_covers_the_farther() -> None:
    """Two slabs of depths d, e and colours c, k: c (1 - exp(-d)) + exp(-d) k (1 - exp(-e)) + exp(-d-e) b, in order."""
    density = torch.zeros(1, 8, 8, 8, dtype=torch.float64)
    density[:, 2], density[:, 5] = 3.0, 8.0  # z
    features = torch.zeros(1, 1, 8, 8, 8, dtype=torch.float64)
    features[:, :, :4], features[:, :, 4:] = 1.0, -1.0
    near, far, behind = 3.0 / 4, 8.0 / 4, 0.5  # a voxel is 1/4 long, and eight samples are in the voxels' centres

    def through(first: float, colour: float, second: float, other: float) -> float:
        front, back = math.exp(-first), math.exp(-second)
        return colour * (1 - front) + front * other * (1 - back) + front * back * behind

    background = torch.full((1, 1, 1, 1), behind, dtype=torch.float64)
    from_front = composite(density, features, rays_of(FRONT, 8, 8), background)
    from_behind = composite(density, features, rays_of((180.0, 0.0, 0.0), 8, 8), background)
    assert torch.allclose(from_front, torch.tensor(through(near, 1.0, far, -1.0), dtype=torch.float64), atol=1e-12)
    assert torch.allclose(from_behind, torch.tensor(through(far, -1.0, near, 1.0), dtype=torch.float64), atol=1e-12)
    # Across the slabs, from the side, a ray sees one colour or none.
    from_side = composite(density, features, rays_of(SIDE, 8, 8), background)[0, 0, 3]
    expected = [0.5] * 8  # to the right is -z
    expected[5] = 1 - math.exp(-6) + 0.5 * math.exp(-6)
    expected[2] = -(1 - math.exp(-16)) + 0.5 * math.exp(-16)
    assert from_side.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("view, distance", [((33.0, -12.0, 5.0), ORTHOGRAPHIC), ((250.0, 40.0, 0.0), 2.0)])
def test_one_colour_is_the_render_of_the_density(view: tuple[float, ...], distance: float) -> None:
    """Of the emission 1 before -1 the image is 2 opacity - 1, whatever the order."""
    density = 3 * torch.rand(1, 6, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rays = rays_of(view, 5, 12, distance)
    ones = torch.ones(1, 1, 6, 6, 6, dtype=torch.float64)
    image = composite(density, ones, rays, -torch.ones(1, 1, 1, 1, dtype=torch.float64))
    assert torch.allclose(image[:, 0], 2 * opacity(optical_depth(density, rays)) - 1, atol=1e-13)


@pytest.mark.parametrize("distance", [ORTHOGRAPHIC, 2.0])
def test_gradients_of_compositing(distance: float) -> None:
    rng = torch.Generator().manual_seed(1)
    shapes = ((1, 3, 3, 3), (1, 2, 3, 3, 3), (1, 2, 2, 2))
    inputs = [torch.rand(shape, dtype=torch.float64, generator=rng).requires_grad_() for shape in shapes]
    rays = rays_of((20.0, 30.0, 0.0), 2, 4, distance)
    assert torch.autograd.gradcheck(lambda density, colour, behind: composite(density, colour, rays, behind), inputs)


def test_a_distance_for_each_camera() -> None:
    """An infinite one is that of an orthographic camera, and others are as one for all."""
    rotation = rotations(torch.tensor([FRONT, (40.0, 10.0, 0.0), SIDE], dtype=torch.float64))
    shift = torch.zeros(3, 2, dtype=torch.float64)
    each = cast_rays(rotation, shift, 4, 6, torch.tensor([math.inf, 2.0, 5.0]))
    for row, distance in enumerate((None, 2.0, 5.0)):
        alone = cast_rays(rotation[row, None], shift[:1], 4, 6, distance)
        assert torch.equal(each.points[row], alone.points[0])
        assert torch.equal(each.steps[row].expand(4, 4), alone.steps[0].expand(4, 4))


def cameras(*rows: tuple[float, float, float]) -> dict[str, Tensor]:
    return {"camera": torch.tensor(rows)}


def test_what_a_camera_sees() -> None:
    """Two opaque half cubes, red in front and blue behind, before a learned background of two halves."""
    solid = coloured().requires_grad_(False)
    solid.logits.fill_(-30.0)
    solid.logits[:, :, 2:6, 2:6] = 30.0
    solid.features.zero_()
    solid.features[0, 0, :4], solid.features[0, 2, 4:] = 1.0, 1.0
    solid.background[0, :, :, 0], solid.background[0, :, :, 1] = -1.0, 1.0
    condition = cameras((0.0, 0.0, math.inf), (180.0, 0.0, math.inf), (90.0, 0.0, math.inf), (0.0, 90.0, math.inf))
    images = solid(torch.zeros(4, 1), condition)
    assert torch.allclose(images[:2, :, 4, 4], torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), atol=1e-6)
    assert images[2, :, 4, 2].tolist() == pytest.approx([0, 0, 1], abs=1e-6)  # to the right is -z
    assert images[3, :, 2, 4].tolist() == pytest.approx([0, 0, 1], abs=1e-6)  # downwards is -z
    for image in images[:2]:  # bilinear between the centres of two halves, which are a quarter from the edges
        assert image[0, 0].tolist() == pytest.approx([-1, -1, -0.75, -0.25, 0.25, 0.75, 1, 1], abs=1e-6)


def test_objects_and_gradients() -> None:
    """The noise chooses the object, whose grids alone have a gradient; a constant background has none."""
    solid = coloured(objects=2, background_size=0)
    condition = cameras((10.0, 20.0, 2.0), (10.0, 20.0, 2.0))
    images = solid(torch.tensor([[-1.0], [-0.2]]), condition)  # both below the median
    assert torch.equal(images[0], images[1])
    images.square().sum().backward()
    assert solid.logits.grad is not None and solid.features.grad is not None
    for gradient in (solid.logits.grad, solid.features.grad):
        assert gradient[0].abs().max() > 1e-3 and gradient[1].abs().max() == 0
    assert not solid.background.requires_grad and bool((solid.background == -0.5).all())
    other = solid(torch.tensor([[0.2]]), cameras((10.0, 20.0, 2.0)))
    assert (other - images[0]).abs().max() > 0.01
    with pytest.raises(ValueError, match="takes a condition with a camera, got labels: use data with cameras"):
        solid(torch.zeros(1, 1), {"labels": torch.zeros(1, 10)})


def test_rays_within_a_pixel_are_averaged() -> None:
    fine, coarse = coloured(image_shape=[3, 16, 16]), coloured(oversampling=2)
    coarse.load_state_dict(fine.state_dict())
    condition = cameras((10.0, 20.0, 2.0))
    expected = torch.nn.functional.avg_pool2d(fine(torch.zeros(1, 1), condition), 2)
    assert torch.allclose(coarse(torch.zeros(1, 1), condition), expected, atol=1e-6)


def test_a_folder_of_a_coloured_scene(tmp_path: Path) -> None:
    solid = coloured(objects=2)
    solid.save_pretrained(tmp_path)
    loaded = ColouredScene.from_pretrained(tmp_path)
    assert loaded.config == solid.config and not loaded.training
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(solid.parameters(), loaded.parameters(), strict=True))
    settings = json.loads((tmp_path / "coloured_scene.json").read_text())
    for change, message in (
        ({"objects": 3}, "logits"),
        ({"size": 10**6}, "size"),
        ({"image_shape": None}, "image_shape=null"),
        ({"image_shape": [3, 8, 4]}, "expected square images"),
    ):
        (tmp_path / "coloured_scene.json").write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match=message):
            ColouredScene.from_pretrained(tmp_path)
    (tmp_path / "coloured_scene.json").unlink()
    with pytest.raises(ValueError, match=r"holds no coloured scene: expected coloured_scene\.json"):
        ColouredScene.from_pretrained(tmp_path)

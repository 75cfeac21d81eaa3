"""Renders of grids: absorption and emission along orthographic or perspective rays, in plain torch.

The grid spans the cube [-1, 1]^3. Its tensor [N, N, N] has the axes (z, y, x), as those of ``grid_sample``. The camera
of no turn looks along +z, with x to the right of the image and y downwards.

Every operation is deterministic on a CPU and works in any floating-point type. On CUDA, the backward pass of torch's
``grid_sample`` in 3-D adds in no fixed order.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Rays(NamedTuple):
    """Points on the rays of all pixels, and the distance between two of them.

    Args:
        points: [B, S, H, W, 3], as (x, y, z).
        steps: [B, H, W], or a shape that expands to it.
    """

    points: Tensor
    steps: Tensor


def rotations(degrees: Tensor) -> Tensor:
    """The rotations [B, 3, 3] of cameras by (azimuth, elevation, roll) [B, 3], in degrees.

    A column is a direction of the camera in the world: to the right of the image, downwards, and into it. Azimuth turns
    the camera about the vertical axis, so that 90 degrees look along +x and 180 degrees see the mirror image. Elevation
    raises it, so that 90 degrees look downwards, along +y. Roll turns the image in its plane.
    """
    zero, one = torch.zeros_like(degrees[:, 0]), torch.ones_like(degrees[:, 0])
    cosines, sines = _cosines(degrees).unbind(1), _cosines(degrees - 90).unbind(1)
    (cos_a, cos_e, cos_r), (sin_a, sin_e, sin_r) = cosines, sines
    azimuth = torch.stack([cos_a, zero, sin_a, zero, one, zero, -sin_a, zero, cos_a], 1)
    elevation = torch.stack([one, zero, zero, zero, cos_e, sin_e, zero, -sin_e, cos_e], 1)
    roll = torch.stack([cos_r, -sin_r, zero, sin_r, cos_r, zero, zero, zero, one], 1)
    return azimuth.view(-1, 3, 3) @ elevation.view(-1, 3, 3) @ roll.view(-1, 3, 3)


def _cosines(degrees: Tensor) -> Tensor:
    """Cosines that are exact at multiples of 90 degrees."""
    turns = torch.remainder(degrees / 90, 4)
    exact = torch.where(turns == 0, 1.0, torch.where(turns == 2, -1.0, 0.0)).to(degrees)
    return torch.where(turns == turns.round(), exact, torch.cos(torch.deg2rad(degrees)))


def cast_rays(
    rotation: Tensor, shift: Tensor, resolution: int, samples: int, distance: float | Tensor | None = None
) -> Rays:
    """The rays of cameras that look at the centre of the cube, whose sides fill the image of an orthographic one.

    Each ray has samples in the middle of equal steps, from where the camera's plane first touches the cube to where it
    leaves it, in this order.

    Args:
        rotation: [B, 3, 3], see :func:`rotations`.
        shift: [B, 2], of the camera to the right and downwards, in units of half the cube's side.
        resolution: pixels H = W of an image.
        samples: S, of each ray.
        distance: of a perspective camera from the centre, in the same units and above sqrt(3); the plane through the
            centre fills its image. None for an orthographic one. Or one for each camera [B], infinite for an
            orthographic one.
    """
    places, depths = _middles(resolution).to(rotation), _middles(samples).to(rotation)
    reach = rotation[:, :, 2].abs().sum(1)  # of the cube's corners along the camera's axis
    w = (reach[:, None] * depths)[:, :, None, None]
    u = (places + shift[:, :1])[:, None, None, :]
    v = (places + shift[:, 1:])[:, None, :, None]
    steps = (reach * (2 / samples))[:, None, None]
    if distance is not None:
        far = torch.as_tensor(distance).to(rotation).view(-1, 1, 1, 1)
        steps = steps * (1 + (u[:, 0] ** 2 + v[:, 0] ** 2) / far[:, 0] ** 2).sqrt()
        u, v = u * (1 + w / far), v * (1 + w / far)
    of_camera = torch.stack(torch.broadcast_tensors(u, v, w), 4)
    return Rays(torch.einsum("bij,bshwj->bshwi", rotation, of_camera), steps)


def values_along(density: Tensor, rays: Rays) -> Tensor:
    """The trilinear values [B, S, H, W] of the ``density`` [B, N, N, N] at the points of the rays.

    The density is that of the voxels' centres, and falls to zero over the half voxel outside of the cube.
    """
    values = F.grid_sample(density[:, None], rays.points, mode="bilinear", padding_mode="zeros", align_corners=False)
    return values[:, 0]


def optical_depth(density: Tensor, rays: Rays) -> Tensor:
    """The integral [B, H, W] of each ray over the ``density`` [B, N, N, N], see :func:`values_along`."""
    return values_along(density, rays).sum(1) * rays.steps


def composite(density: Tensor, features: Tensor, rays: Rays, background: Tensor) -> Tensor:
    """The image [B, C, H, W] of a medium that absorbs and emits, composed from front to back.

    It is exact for a medium that is constant in each of a ray's steps: the light of a step i, of optical depth d_i,
    arrives as ``exp(-(d_1 + ... + d_(i-1))) (1 - exp(-d_i)) features_i`` (NeRF, arXiv 2003.08934, eq. 3), and that of
    the ``background`` as ``exp(-(d_1 + ... + d_S)) background``.

    Args:
        density: [B, N, N, N], as in :func:`values_along`.
        features: what a place emits, the values [B, C, N, N, N] of the voxels' centres, trilinear between them; over
            the half voxel outside of them they are those of the nearest centre.
        rays: of the pixels.
        background: [B, C, H, W], or a shape that expands to it.
    """
    depths = values_along(density, rays) * rays.steps[:, None]
    emitted = F.grid_sample(features, rays.points, mode="bilinear", padding_mode="border", align_corners=False)
    through = torch.exp(-depths.cumsum(1))  # what passes each step and those before it
    weights = torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], 1) * opacity(depths)
    return (weights[:, None] * emitted).sum(2) + through[:, None, -1] * background


def opacity(depth: Tensor) -> Tensor:
    """The part ``1 - exp(-depth)`` of the light that is absorbed, whatever the order of what absorbs it."""
    return -torch.expm1(-depth)


def blob(size: int, depth: float, radius: float = 0.5) -> Tensor:
    """The density [N, N, N] of a Gaussian ball of standard deviation ``radius``, of this optical ``depth``."""
    squares = voxel_centres(size).square().sum(3)
    through_centre = radius * math.sqrt(2 * math.pi) * math.erf(1 / (radius * math.sqrt(2)))
    return torch.exp(-squares / (2 * radius**2)) * (depth / through_centre)


def voxel_centres(size: int) -> Tensor:
    """The centres [N, N, N, 3] of the voxels of a grid, as (x, y, z)."""
    places = _middles(size)
    return torch.stack(torch.meshgrid(places, places, places, indexing="ij")[::-1], 3)


def _middles(count: int) -> Tensor:
    """The middles [count] of equal parts of [-1, 1]."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) * (2 / count) - 1

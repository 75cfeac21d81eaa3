"""Pictures of a scene: an animated turn, sheets of its views and of its objects, and a plot of how they turn away."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from onestep.files import atomic_file
from onestep.images import to_uint8
from onestep.models.scene.scene import Scene
from onestep.reports.plots import new_figure, save_figure, save_image, to_grid
from onestep.seeding import one_hot, seeded_noise

_SIDE = 96  # pixels of a picture
_FRAMES = 24  # from one view to the next
_MILLISECONDS, _REST = 60, 900  # of a frame, and of a view
_RENDERS = 9  # of each view in the sheet, beside the enlarged view itself
_OBJECTS = 10  # in the sheet of several


def save_turntable(scene: Scene, path: Path) -> None:
    """Write an animation of the first object: around the views in order, with a rest on each."""
    device = scene.logits.device
    stops = torch.tensor([*scene.views, scene.views[0]])
    frames = []
    for start, end in pairwise(stops):
        steps = torch.linspace(0, 1, _FRAMES + 1)[:-1]
        frames += [start + (end - start) * (3 * step**2 - 2 * step**3) for step in steps]
    degrees = torch.stack(frames).to(device)
    pixels = to_uint8(_pictures(scene, degrees)) // 8 * 8  # fewer greys compress better
    save_animation(pixels, ([_REST] + [_MILLISECONDS] * (_FRAMES - 1)) * len(scene.views), path)


def save_animation(pixels: Tensor, durations: list[int], path: Path) -> None:
    """Write an endless animation of uint8 images [T, C, H, W], of 1 or 3 channels, each for some milliseconds."""
    first, *others = [
        Image.fromarray((image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy()) for image in pixels.cpu()
    ]
    with atomic_file(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)


def save_views(scene: Scene, path: Path) -> None:
    """Write a sheet with a row for each view: the view in fine pixels, then samples of other seeds."""
    device = scene.logits.device
    latents = next(seeded_noise(range(_RENDERS), scene.noise_shape)).to(device)
    scale = max(1, _SIDE // scene.image_shape[1])
    rows = []
    for label, view in zip(scene.classes, scene.views, strict=True):
        condition = {"labels": one_hot(label, scene.label_dim).expand(len(latents), -1).to(device)}
        samples = scene(latents, condition).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        fine = _pictures(scene, torch.tensor([view], device=device), samples.shape[-1])
        rows.append(torch.cat([fine, samples]))
    save_image(to_grid(torch.cat(rows), columns=1 + _RENDERS, scale=1, gap=2), path)


def save_objects(scene: Scene, path: Path) -> None:
    """Write a sheet with a row for each view and a column for each of the first objects, in fine pixels."""
    count, device = min(_OBJECTS, len(scene.logits)), scene.logits.device
    degrees = torch.tensor(scene.views, device=device).repeat_interleave(count, 0)
    numbers = torch.arange(count, device=device).repeat(len(scene.views))
    save_image(to_grid(_pictures(scene, degrees, numbers=numbers), columns=count, scale=1, gap=2), path)


def save_turns(turns: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Plot the share of renders named by their class against the angle that turns: a panel each, a curve a class."""
    figure = new_figure(figsize=(9, 3), layout="constrained")
    for axis, (name, curves) in zip(figure.subplots(1, len(turns), sharey=True), turns.items(), strict=True):
        for label, shares in curves.items():
            axis.plot([float(angle) for angle in shares], list(shares.values()), label=label)
        axis.set_xlabel(f"{name} of the camera in degrees")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share named by its class")
    figure.axes[0].legend(title="view of class")
    save_figure(figure, path)


def _pictures(scene: Scene, degrees: Tensor, side: int = _SIDE, numbers: Tensor | None = None) -> Tensor:
    """Renders [T, C, side, side] from cameras [T, 3] in degrees of the objects ``numbers`` [T], or of the first."""
    if numbers is None:
        numbers = torch.zeros(len(degrees), dtype=torch.long, device=degrees.device)
    centred = degrees.new_zeros(len(degrees), 2)
    return torch.cat([
        scene.render(*inputs, resolution=side)
        for inputs in zip(degrees.split(8), centred.split(8), numbers.split(8), strict=True)
    ])  # fmt: skip

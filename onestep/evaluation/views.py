"""The views of a scene: what a classifier that took no part sees in them, and pictures of the solid."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onestep.data.classes import classes_of_items
from onestep.data.dataset import ImageDataset
from onestep.denoiser import map_condition
from onestep.files import atomic_file
from onestep.images import to_uint8
from onestep.metrics.classifier import Classifier
from onestep.models.scene.hull import visual_hull
from onestep.models.scene.scene import Scene
from onestep.reports.turntable import save_turntable, save_views
from onestep.seeding import seeded_inputs, seeded_rng

_RENDERS = 200  # of each view
_TRIED = 100  # sets of images, one of each class, of which the best hull is taken
#: Optical depths through a full voxel of a hull, of which the best is taken.
_DEPTHS = (0.25, 0.5, 1.0, 2.0, 4.0)

#: Accuracy and mean probability of the intended class, by class.
Verdict = dict[str, dict[str, float]]


@dataclass(frozen=True)
class ViewsReport:
    """Judges the views of a trained scene, and writes its pictures and densities.

    Args:
        classifier: names the class of a render; None for pictures alone. It must not have trained the scene.
        images: real images of the views, of whose visual hull the views are judged too; None for none.
    """

    classifier: Classifier | None
    images: ImageDataset | None

    @torch.no_grad()
    def __call__(self, scene: Scene, folder: Path) -> dict[str, Verdict]:
        """Write ``turntable.gif``, ``views.png`` and ``density.npz`` into ``folder``.

        Returns:
            The verdict on the ``student``, on the ``initial`` scene, and on the ``hull`` of real images, if there are
            any; empty without a classifier.
        """
        save_turntable(scene, folder / "turntable.gif")
        save_views(scene, folder / "views.png")
        with atomic_file(folder / "density.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, density=scene.density.cpu().numpy())
        if self.classifier is None:
            return {}
        judged = {"student": scene, "initial": scene.initial()}
        if self.images is not None:
            judged["hull"] = best_hull(scene, self.images)
        return {name: self.judge(one) for name, one in judged.items()}

    def judge(self, scene: Scene) -> Verdict:
        """Accuracy and mean probability of the class of each view, over renders of the same seeds."""
        assert self.classifier is not None
        found, device = {}, scene.logits.device
        classifier = self.classifier.to(device)
        for label in scene.classes:
            latents, condition = seeded_inputs(list(range(_RENDERS)), scene.noise_shape, scene.label_dim, [label])
            renders = scene(latents.to(device), map_condition(lambda tensor: tensor.to(device), condition))
            logits = classifier.classify(to_uint8(renders))
            accuracy = (logits.argmax(1) == label).double().mean()
            probability = logits.double().softmax(1)[:, label].mean()
            found[str(label)] = {"accuracy": float(accuracy), "probability": float(probability)}
        return found


def best_hull(scene: Scene, images: ImageDataset) -> Scene:
    """The visual hull of real images of the views, as an object before the same cameras.

    It is the best of random sets of images and of optical depths: with the least squared error of the views.
    """
    targets = _random_sets(images, scene.classes).to(scene.logits)
    hull = visual_hull(targets, scene.views, scene.logits.shape[1])
    best, least = hull[:1], torch.inf
    for depth in _DEPTHS:
        solids = scene.with_depths(depth * hull)
        numbers = torch.arange(len(hull), device=hull.device)
        errors = torch.zeros(len(hull), device=hull.device)
        for place, view in enumerate(scene.views):
            degrees = errors.new_tensor([view]).expand(len(hull), -1)
            opacity = (solids.render(degrees, errors.new_zeros(len(hull), 2), numbers).mean(1) + 1) / 2
            errors += (opacity - targets[:, place]).square().flatten(1).mean(1)
        if errors.min() < least:
            least, best = float(errors.min()), depth * hull[errors.argmin()][None]
    return scene.with_depths(best)


def _random_sets(images: ImageDataset, classes: list[int]) -> Tensor:
    """The opacities [T, V, H, W] of random images, one of each class."""
    labels = classes_of_items(images)
    rng = seeded_rng(0)
    views = []
    for label in classes:
        places = (labels == label).nonzero().flatten()
        chosen = places[torch.randint(len(places), (_TRIED,), generator=rng)]
        views.append((images.__getitems__(chosen.tolist())[0].mean(1) + 1) / 2)
    return torch.stack(views, 1)

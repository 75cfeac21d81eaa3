"""The views of a scene: what a classifier that took no part sees in them, their variety, and pictures of the solids."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onestep.data.classes import classes_of_items
from onestep.data.dataset import ImageDataset
from onestep.denoiser import map_condition
from onestep.evaluation.generate import SampleFunction
from onestep.evaluation.turns import shares_by_angle
from onestep.evaluation.variety import variety_of
from onestep.images import to_uint8
from onestep.metrics.classifier import Classifier
from onestep.models.scene.generator import AnyScene, solids_of
from onestep.models.scene.hull import visual_hull
from onestep.models.scene.mesh import OpaqueScene, save_solids
from onestep.models.scene.scene import Scene
from onestep.reports.turntable import save_objects, save_turns, save_turntable, save_views
from onestep.seeding import seeded_inputs, seeded_noise, seeded_rng

_RENDERS = 200  # of each view
_TRIED = 100  # sets of images, one of each class, of which the best hull is taken
#: Optical depths through a full voxel of a hull, of which the best is taken.
_DEPTHS = (0.25, 0.5, 1.0, 2.0, 4.0)

#: Accuracy and mean probability of the intended class, by class; of several objects their variety too.
Verdict = dict[str, dict[str, float]]


@dataclass(frozen=True)
class ViewsReport:
    """Judges the views of a trained scene, and writes its pictures and densities.

    Args:
        classifier: names the class of a render; None for pictures alone. It must not have trained the scene.
        images: real images of the views, of whose visual hull the views are judged too; None for none.
        teacher: draws the teacher's samples, whose variety that of several objects is compared with.
    """

    classifier: Classifier | None
    images: ImageDataset | None
    teacher: SampleFunction

    @torch.no_grad()
    def __call__(self, student: AnyScene, folder: Path) -> dict[str, Verdict]:
        """Write ``turntable.gif``, ``views.png``, ``density.npz`` and the mesh of the first object into ``folder``.

        With a classifier ``turns.png`` is written too, and of several objects ``objects.png``.

        Returns:
            The verdict on the ``student``, on the ``mesh`` of its surface, on the ``initial`` scene, on the ``hull`` of
            real images, if there are any, and of several objects on the samples of the ``teacher``; ``azimuth`` and
            ``elevation`` of :func:`shares_by_angle`. Empty without a classifier.
        """
        scene = solids_of(student)
        several = len(scene.logits) > 1
        save_turntable(scene, folder / "turntable.gif")
        save_views(scene, folder / "views.png")
        if several:
            save_objects(scene, folder / "objects.png")
        save_solids(scene, folder, meshes=[0])
        if self.classifier is None:
            return {}
        verdicts = {
            "student": self.judge(scene),
            "mesh": self.judge(OpaqueScene.of(scene), scene),
            "initial": self.judge(scene.initial()),
        }
        if self.images is not None:
            verdicts["hull"] = self.judge(best_hull(scene, self.images))
        if several:
            verdicts["teacher"] = self.judge_teacher(scene)
        turns = shares_by_angle(scene, self.classifier)
        save_turns(turns, folder / "turns.png")
        return verdicts | turns

    def judge(self, scene: Scene, other: Scene | None = None) -> Verdict:
        """Accuracy and mean probability of the class of each view, over renders of the same seeds.

        The variety is that of different objects, all seen from the view itself. The ``difference`` is the mean absolute
        one of the opacities from the renders of the ``other`` scene, if there is one.
        """
        found = {}
        count, device = min(_RENDERS, len(scene.logits)), scene.logits.device
        for label, view in zip(scene.classes, scene.views, strict=True):
            renders = self._draw(scene, scene.noise_shape, scene, label)
            verdict = self._verdict(renders, label)
            if other is not None:
                difference = (renders - self._draw(other, scene.noise_shape, scene, label)) / 2
                verdict["difference"] = float(difference.abs().mean())
            if count > 1:
                degrees = torch.tensor([view], device=device).expand(count, -1)
                seen = scene.render(degrees, degrees.new_zeros(count, 2), torch.arange(count, device=device))
                verdict |= self._variety(seen)
            found[str(label)] = verdict
        return found

    def judge_teacher(self, scene: Scene) -> Verdict:
        """The same of the teacher's samples of the classes of the views."""
        found = {}
        for label in scene.classes:
            samples = self._draw(self.teacher, scene.image_shape, scene, label)
            found[str(label)] = self._verdict(samples, label) | self._variety(samples)
        return found

    def _draw(self, sample: SampleFunction, noise_shape: tuple[int, ...], scene: Scene, label: int) -> Tensor:
        """Samples of a class, each from a seed of its own."""
        seeds, device = list(range(_RENDERS)), scene.logits.device
        latents, condition = seeded_inputs(seeds, noise_shape, scene.label_dim, [label])
        noises = (noise.to(device) for noise in seeded_noise(seeds, noise_shape, scene.label_dim))
        return sample(latents.to(device), map_condition(lambda tensor: tensor.to(device), condition), noises)

    def _verdict(self, samples: Tensor, label: int) -> dict[str, float]:
        assert self.classifier is not None
        logits = self.classifier.to(samples.device).classify(to_uint8(samples))
        accuracy = (logits.argmax(1) == label).double().mean()
        probability = logits.double().softmax(1)[:, label].mean()
        return {"accuracy": float(accuracy), "probability": float(probability)}

    def _variety(self, samples: Tensor) -> dict[str, float]:
        assert self.classifier is not None
        return variety_of(to_uint8(samples), self.classifier.to(samples.device))


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

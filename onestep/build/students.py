"""Students of other kinds than the generator: what they need of the other parts of a run."""

from typing import Any

from omegaconf import DictConfig

from onestep.build.checks import check_fit
from onestep.data.classes import of_classes
from onestep.data.dataset import ImageDataset, NoData, TrainingDataset
from onestep.evaluation.generate import SampleFunction
from onestep.evaluation.views import ViewsReport
from onestep.metrics.classifier import Classifier
from onestep.models.scene.generator import AnyScene
from onestep.models.scene.scene import Scene
from onestep.objectives.base import Objective


def data_of_scene(
    config: DictConfig, scene: AnyScene, objective: Objective, data: TrainingDataset | NoData
) -> TrainingDataset | NoData:
    """The ``data`` of the classes that have a view, after a check that the run can train the scene.

    Raises:
        ValueError: for renders of another shape than the data, one object with a discriminator, sharding, or data
            without classes.
    """
    check_fit(scene, data, "student")
    critic = objective.needs_ratio or config.generator.gan_weight > 0
    if critic and isinstance(scene, Scene) and len(scene.logits) == 1:
        cause = "this divergence needs" if objective.needs_ratio else "generator.gan_weight > 0 learns"
        raise ValueError(
            f"student.objects=1: {cause} the ratio p/q of densities, and the renders of one object have none, as "
            "only the camera varies: use objective=sds, vsd, diff_instruct, sim or sid, "
            "divergence=reverse_kl with generator.gan_weight=0, student.objects=32, or student=scene_generator"
        )
    if config.shard:
        raise ValueError(
            "shard=true: the grid of a scene is not sharded, every process renders all of it: set shard=false"
        )
    return of_classes(data, scene.classes)


def build_views(
    student: Any, data: TrainingDataset | NoData, features: Any, teacher: SampleFunction
) -> ViewsReport | None:
    """The report of a scene's views at the end of a run; None for another student."""
    if not isinstance(student, AnyScene):
        return None
    classifier = features if isinstance(features, Classifier) else None
    images = data if isinstance(data, ImageDataset) else None
    return ViewsReport(classifier, images, teacher)

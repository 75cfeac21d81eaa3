"""Students of other kinds than the generator: what they need of the other parts of a run."""

from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from onestep.build.checks import check_fit
from onestep.config import instantiate
from onestep.data.classes import of_classes
from onestep.data.dataset import ImageDataset, NoData, TrainingDataset, contents
from onestep.evaluation.generate import SampleFunction
from onestep.evaluation.orbit import OrbitReport
from onestep.evaluation.views import ViewsReport
from onestep.metrics.classifier import Classifier
from onestep.models.base import DenoiserNetwork
from onestep.models.scene.coloured import ColouredScene
from onestep.models.scene.generator import AnyScene, SceneGenerator
from onestep.objectives.base import Objective


def build_student(config: DictConfig, given: Mapping[str, Any], teacher: Any) -> Any:
    """The student in place of the generator, or None: of the ``given`` parts, or of the configuration.

    The ``teacher``'s shape of samples replaces one of null.
    """
    node = config.get("student")
    if "student" in given or node is None:
        return given.get("student")
    shape = {"image_shape": list(teacher.image_shape)} if node.get("image_shape", 0) is None else {}
    return instantiate(node, **shape)


def data_of_scene(
    config: DictConfig, scene: AnyScene | ColouredScene, objective: Objective, data: TrainingDataset | NoData
) -> TrainingDataset | NoData:
    """The ``data`` of what has a view, after a check that the run can train the scene.

    Raises:
        ValueError: for renders of another shape than the data, one object with a discriminator, sharding, data without
            classes, or for a coloured scene without cameras.
    """
    if isinstance(scene, AnyScene):
        check_fit(scene, data, "student")
    critic = objective.needs_ratio or config.generator.gan_weight > 0
    if critic and not isinstance(scene, SceneGenerator) and len(scene.logits) == 1:
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
    if isinstance(scene, AnyScene):
        return of_classes(data, scene.classes)
    if "camera" not in (names := contents(data)[1]):
        raise ValueError(
            f"a coloured scene takes cameras, and the data have the conditions {', '.join(names) or 'none'}: use "
            "data=view_prompts"
        )
    if scene.image_shape != tuple(data.image_shape):
        raise ValueError(
            f"student.image_shape={list(scene.image_shape)}: expected {list(data.image_shape)}, the shape of the "
            "teacher and the data: set it to null"
        )
    return data


def build_views(
    student: Any, data: TrainingDataset | NoData, features: Any, teacher: SampleFunction,
    decode: Callable[[Tensor], Tensor] | None,
) -> ViewsReport | OrbitReport | None:  # fmt: skip
    """The report of a scene's views at the end of a run; None for another student."""
    if isinstance(student, ColouredScene) and isinstance(data, TrainingDataset):
        return OrbitReport(float(data.__getitems__([0])[1]["camera"][0, 2]), decode)
    if not isinstance(student, AnyScene):
        return None
    classifier = features if isinstance(features, Classifier) else None
    images = data if isinstance(data, ImageDataset) else None
    return ViewsReport(classifier, images, teacher)


def check_alignment(alignment: float, student: Any, fake_score: DenoiserNetwork) -> None:
    """Check that the fake score can be moved to the generator by the part ``alignment``, parameter by parameter.

    Raises:
        ValueError: if they have not the same trained parameters.
    """
    if not alignment:
        return
    theirs, ours = (
        {name: p.shape for name, p in network.named_parameters() if p.requires_grad}
        for network in (getattr(student, "denoiser", nn.Module()), fake_score)
    )
    if different := sorted(name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)):
        raise ValueError(
            f"fake_score.alignment={alignment}: the fake score and the {type(student).__name__} must train the same "
            f"parameters, and {len(different)} differ, such as {different[0]}: give both the same network, lora and "
            "frozen parameters, or set it to 0"
        )

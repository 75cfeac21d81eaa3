"""A prompt from all sides: cameras, and the words of the views that they have."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le, Len
from torch import Tensor

from onestep.cache import fingerprint
from onestep.data.prompts import PromptDataset
from onestep.denoiser import Condition
from onestep.files import hash_tensors
from onestep.models.diffusers.pipeline import PromptEmbeddings, TeacherPipeline
from onestep.models.scene.scene import Distance
from onestep.ranges import Text, checked
from onestep.seeding import seeded_rng

#: The words that follow a prompt.
VIEWS = ("front view", "side view", "back view", "overhead view")
_CAMERAS = 2**16  # drawn once; a training reads them in the order of its seed

Degrees = Annotated[float, Ge(0), Le(90)]
Elevation = Annotated[Sequence[Annotated[float, Ge(-90), Le(90)]], Len(2, 2)]
Distances = Annotated[Sequence[Distance], Len(2, 2)]


@checked
class Views:
    """Cameras in all directions, each a condition ``camera`` [3], and the prompt of each.

    Camera ``i`` is a function of ``i`` and the ranges. A prompt is followed by the words of the view, at the angles of
    threestudio's PromptProcessor: the front is within ``front`` degrees of azimuth 0, the back within ``back`` of
    azimuth 180, the rest is a side, and above an elevation of ``overhead`` all is overhead. DreamFusion (arXiv
    2209.14988, sec. 3.2) has the latter at 60 degrees too, and interpolates the embeddings of the others.

    Args:
        prompt: what is seen.
        front, back, overhead: degrees.
        elevation: lowest and highest, in degrees.
        distance: smallest and largest from the centre, in half sides of the cube; None for orthographic cameras.

    Attributes:
        cameras: azimuth, elevation and distance [N, 3].
        views: the place [N] of each camera's words in :data:`VIEWS`.
        texts: the prompt of each view.
        prompts: that of each camera.

    Raises:
        ValueError: for a range that descends.
    """

    def __init__(
        self, prompt: Text, front: Degrees, back: Degrees, overhead: Degrees, elevation: Elevation,
        distance: Distances | None,
    ) -> None:  # fmt: skip
        for name, bounds in (("elevation", elevation), ("distance", distance or (0, 0))):
            if bounds[0] > bounds[1]:
                raise ValueError(f"{name}={list(bounds)}: expected the lower bound first")
        low, high = torch.tensor([[0.0, 360.0], [*elevation], [*(distance or (1.0, 1.0))]]).unbind(1)
        self.cameras = low + (high - low) * torch.rand(_CAMERAS, 3, generator=seeded_rng(0))
        if distance is None:
            self.cameras[:, 2] = torch.inf
        self.views = view_of(self.cameras, front, back, overhead)
        self.texts = [f"{prompt}, {words}" for words in VIEWS]
        self.prompts: Sequence[str] | None = [self.texts[view] for view in self.views.tolist()]

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, indices: Sequence[int]) -> Condition:
        return {"camera": self.cameras[indices]}


def view_of(cameras: Tensor, front: float, back: float, overhead: float) -> Tensor:
    """The places [N] in :data:`VIEWS` of ``cameras`` [N, 3], see :class:`Views`."""
    azimuth = cameras[:, 0].remainder(360)
    turned = torch.minimum(azimuth, 360 - azimuth)  # from the front, in [0, 180]
    view = torch.where(turned < front, 0, torch.where(turned > 180 - back, 2, 1))
    return torch.where(cameras[:, 1] > overhead, 3, view)


class ViewEmbeddings(PromptEmbeddings):
    """The cameras of ``views`` with the embeddings of their prompts, which are ``texts``, by position."""

    def __init__(self, views: Views, texts: PromptEmbeddings) -> None:
        self.views, self.texts, self.prompts = views, texts, views.prompts

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, indices: Sequence[int]) -> Condition:
        return {**self.texts[self.views.views[indices].tolist()], **self.views[indices]}

    def fingerprint(self) -> str:
        """A hash of the cameras, the prompts and their encoders."""
        return fingerprint({"cameras": hash_tensors({"": self.views.cameras}), "texts": self.texts.fingerprint()})


class ViewPrompts(PromptDataset):
    """A prompt from all sides as conditions: a camera, which a scene reads, and the embedding of its view's prompt.

    The four prompts are encoded once and cached, as those of :class:`onestep.data.prompts.PromptDataset`.

    Args:
        prompt, front, back, overhead, elevation, distance: those of :class:`Views`.
        pipeline: the teacher's pipeline.

    Raises:
        ValueError: as :class:`Views` and :class:`onestep.data.prompts.PromptDataset`.
    """

    embeddings: ViewEmbeddings

    def __init__(
        self, prompt: Text, front: Degrees, back: Degrees, overhead: Degrees, elevation: Elevation,
        distance: Distances | None, pipeline: TeacherPipeline,
    ) -> None:  # fmt: skip
        views = Views(prompt, front, back, overhead, elevation, distance)
        self.pipeline, self.label_dim, self.image_shape = pipeline, 0, pipeline.latent_shape
        self.embeddings = ViewEmbeddings(views, pipeline.encode_prompts(views.texts))
        self.images = self.latents = None

    @property
    def description(self) -> str:
        return f"{len(self):,} cameras around {self.embeddings.views.texts[0].rpartition(',')[0]!r}"

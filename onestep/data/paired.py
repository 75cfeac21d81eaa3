"""Images with their degraded versions, for super-resolution."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor

from onestep.data.dataset import ImageDataset
from onestep.data.degradation import Degradation, enlarge
from onestep.data.stored import StoredImages
from onestep.denoiser import Condition
from onestep.files import hash_parts
from onestep.ranges import Seed, checked
from onestep.reading import one_line

Repeats = Annotated[int, Ge(1), Le(10**6)]
_TRAINING, _EVALUATION = range(2)  # the random streams of degradations


class PairedData(ImageDataset):
    """Images x with the condition ``image``, the degraded one at the size of x, in [-1, 1], and ``labels``, if any.

    Args:
        originals: the images x alone.

    Raises:
        ValueError: for latents or points.
    """

    def __init__(self, originals: ImageDataset) -> None:
        channels, height, width = self.image_shape = originals.image_shape
        if channels not in (1, 3) or (height, width) == (1, 1):
            raise ValueError(
                f"the images to degrade are {channels}x{height}x{width}: expected grey or RGB pixels, no latents and "
                "points"
            )
        self.originals, self.label_dim, self.class_cycle = originals, originals.label_dim, originals.class_cycle

    @property
    @abstractmethod
    def evaluated(self) -> "PairedData":
        """The pairs of an evaluation; the sample of seed ``s`` is of the pair ``s`` modulo their number."""

    @property
    @abstractmethod
    def factor(self) -> float:
        """How many times larger the images are than the degraded ones."""

    @abstractmethod
    def pairs(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Condition]:
        """The images [B, C, H, W], the degraded ones [B, C, h, w] at their own size, and the other conditions."""

    @abstractmethod
    def degrade(self, samples: Tensor, indices: Sequence[int]) -> Tensor | None:
        """``samples`` [B, C, H, W] degraded as the images of ``indices`` were; None if the degradation is not known."""

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Condition]:
        images, low, condition = self.pairs(indices)
        return images, {"image": enlarge(low, (images.shape[2], images.shape[3])), **condition}


@checked
class PairedImages(PairedData):
    """Images and a degradation, whose random numbers are functions of ``seed`` and the index alone.

    Args:
        images: in pixels, augmented or not.
        degradation: to their lower resolution.
        evaluation: other images for the evaluation, such as photographs that no training sees; None for ``images``.
        repeats: how often each image is there, each time with another random degradation.
        seed: of the degradations.

    Raises:
        ValueError: without a degradation, for latents, or images of the evaluation that differ in shape or classes.
    """

    def __init__(
        self,
        images: ImageDataset,
        degradation: Degradation | None,
        evaluation: ImageDataset | None = None,
        repeats: Repeats = 1,
        seed: Seed = 0,
    ) -> None:
        if degradation is None:
            raise ValueError(
                "data=paired needs a degradation: choose degradation=area, bicubic, bsrgan, real_esrgan or res_shift"
            )
        super().__init__(images)
        for name in ("image_shape", "label_dim") if evaluation is not None else ():
            ours, theirs = getattr(images, name), getattr(evaluation, name)
            if ours != theirs:
                raise ValueError(
                    f"data.evaluation has {name} {theirs}, data.images {ours}: choose images of one shape and the same "
                    "classes"
                )
        self.degradation, self.evaluation, self.seed = degradation, evaluation, seed
        self.copies = images.copies * repeats
        self.repeats, self._stream = repeats, _TRAINING

    def __len__(self) -> int:
        return len(self.originals) * self.repeats

    @property
    def evaluated(self) -> "PairedImages":
        found = PairedImages(self.evaluation or self.originals, self.degradation, None, 1, self.seed)
        found._stream = _EVALUATION
        return found

    @property
    def factor(self) -> float:
        return self.degradation.factor

    def pairs(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Condition]:
        images, condition = self.originals.__getitems__([index % len(self.originals) for index in indices])
        return images, self.degrade(images, indices), condition

    def degrade(self, samples: Tensor, indices: Sequence[int]) -> Tensor:
        return self.degradation(samples, [(self.seed, self._stream, int(index)) for index in indices])

    @property
    def description(self) -> str:
        return f"{self.originals.description}, degraded by {type(self.degradation).__name__}"

    def fingerprint(self) -> str:
        return hash_parts(
            [self.originals.fingerprint(), repr((self.degradation, self.seed, self.repeats, self._stream))]
        )


class PairedFolders(PairedData):
    """Two folders of equally many images with the same names: degraded ones, and what is to be restored.

    Args:
        high: the images to restore, all of one shape.
        low: the degraded ones, all of one shape, with the same channels; files may end differently.

    Raises:
        ValueError: naming an image without its counterpart, or for shapes that do not fit.
    """

    def __init__(self, high: StoredImages, low: StoredImages) -> None:
        super().__init__(high)
        ours, theirs = ([_stem(data, place) for place in range(len(data.positions))] for data in (high, low))
        place_of = dict(zip(theirs, range(len(theirs)), strict=True))
        for data, names, others, other in ((high, ours, theirs, low), (low, theirs, ours, high)):
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"{data.path}: two images are named {twice!r}: rename one")
            missing = sorted(set(names) - set(others))
            if missing:
                raise ValueError(
                    f"{other.path}: no image is named {one_line(missing[0])} as in {data.path}, and {len(missing)} are "
                    "missing: add them, or remove their counterparts"
                )
        if high.copies != 1 or low.copies != 1:
            raise ValueError(
                "data.high and data.low: pairs have no mirror images of their own: set xflip=false in both"
            )
        (channels, height, width), (low_channels, low_height, low_width) = high.image_shape, low.image_shape
        if low_channels != channels or low_height > height or low_width > width:
            raise ValueError(
                f"{low.path}: images of {low.image_shape} (channels, height, width) for {high.image_shape} in "
                f"{high.path}: expected as many channels, and at most the same size"
            )
        self.low = low
        self._place = [place_of[name] for name in ours]

    def __len__(self) -> int:
        return len(self.originals)

    @property
    def evaluated(self) -> "PairedFolders":
        return self

    @property
    def factor(self) -> float:
        return self.originals.image_shape[1] / self.low.image_shape[1]

    def pairs(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Condition]:
        images, condition = self.originals.__getitems__(indices)
        return images, self.low.__getitems__([self._place[index] for index in indices])[0], condition

    def degrade(self, samples: Tensor, indices: Sequence[int]) -> Tensor | None:
        return None

    @property
    def description(self) -> str:
        return f"{self.originals.description}, with {self.low.description}"

    def fingerprint(self) -> str:
        return hash_parts([self.originals.fingerprint(), self.low.fingerprint()])


def _stem(data: StoredImages, place: int) -> str:
    """The name of an image without its ending."""
    return str(PurePosixPath(data.names[data.positions[place]]).with_suffix(""))

"""A small convolutional classifier as a feature network, for data unlike Inception's training images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Len, MinLen
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from onestep.assets import ASSETS
from onestep.files import atomic_file
from onestep.metrics.features import FeatureNetwork
from onestep.ranges import Classes, Count, Fraction, ImageShape, PathText, Side, Text, Width, checked
from onestep.reading import one_line, open_tensors, parse_json, read_tensors

_Layers = Annotated[list[Side], Field(max_length=100)]


class _Config(TypedDict):
    """The arguments of :class:`Classifier` in a file."""

    name: str
    image_shape: ImageShape
    num_classes: Count
    num_features: Side
    channels: _Layers
    strides: _Layers
    held_out_accuracy: float | None


@checked
class Classifier(FeatureNetwork):
    """A classifier of square images; its features are the activations before the last layer.

    ``onestep pretrain features`` trains one.

    Args:
        name: name of the data.
        image_shape: (C, H, W) of the images.
        num_classes: number of classes.
        num_features: number of features.
        channels, strides: of each 3x3 convolution.
        held_out_accuracy: accuracy in [0, 1] on images outside the training set; None until measured.
    """

    differentiable = True

    def __init__(
        self,
        name: Text,
        image_shape: Annotated[Sequence[Side], Len(3, 3)],
        num_classes: Classes,
        num_features: Width,
        channels: Annotated[Sequence[Width], MinLen(1)],
        strides: Annotated[Sequence[Side], MinLen(1)],
        held_out_accuracy: Fraction | None = None,
    ) -> None:
        super().__init__()
        if len(channels) != len(strides):
            raise ValueError(f"channels={channels}, strides={strides}: expected one stride for each convolution")
        self.config = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        self.title = f"{name} classifier"
        before, height, width = self.image_shape = (image_shape[0], image_shape[1], image_shape[2])
        self.num_features = num_features
        self.convs = nn.ModuleList()
        for after, stride in zip(channels, strides, strict=True):
            self.convs.append(nn.Conv2d(before, after, 3, stride, padding=1))
            before, height, width = after, -(-height // stride), -(-width // stride)
        self.hidden = nn.Linear(before * height * width, num_features)
        self.logits = nn.Linear(num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, num_features], float32, of uint8 images [B, C, H, W]."""
        return F.silu(self.hidden(self.maps(images)[-1].flatten(1)))

    def maps(self, images: Tensor) -> list[Tensor]:
        """The activations of each convolution."""
        x, maps = (images.to(self.hidden.weight) - 128) / 127.5, []
        for conv in self.convs:
            x = F.silu(conv(x))
            maps.append(x)
        return maps

    def classify(self, images: Tensor) -> Tensor:
        """Class logits [B, num_classes] of uint8 images [B, C, H, W]."""
        return self.logits(self.forward(images))

    def save(self, path: Path) -> None:
        """Write the weights, with the constructor's arguments in their metadata."""
        with atomic_file(path) as temporary:
            save_file(self.state_dict(), temporary, metadata={"config": json.dumps(self.config)})


@checked
def load_classifier(path: PathText) -> Classifier:
    """A frozen classifier in eval mode.

    Args:
        path: a file of :meth:`Classifier.save`, or the name of a bundled classifier: "digits", "fashion".

    Raises:
        ValueError: if there is no such file, or it holds no classifier.
    """
    bundled = ASSETS / f"{path}_features.safetensors"
    file = bundled if bundled.is_file() else Path(path)
    if not file.is_file():
        raise ValueError(f"no feature network at {file}: train one with onestep pretrain features")
    try:
        with open_tensors(file) as content:
            text = (content.metadata() or {}).get("config", "")
        with torch.device("meta"):  # the file's numbers may ask for any size
            network = Classifier(**parse_json(text, _Config, f"{file}, config"))
        network.load_state_dict(read_tensors(file), assign=True)
    except (ValueError, RuntimeError) as error:
        reason = one_line(error, 300)
        raise ValueError(f"{file} holds no feature network of onestep pretrain features: {reason}") from error
    return network.eval().requires_grad_(False)

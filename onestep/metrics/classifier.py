"""A small convolutional classifier as a feature network, for data that Inception was not made for."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from onestep.assets import ASSETS
from onestep.files import atomic_file
from onestep.metrics.features import FeatureNetwork


class Classifier(FeatureNetwork):
    """A classifier of square images, whose activations before the last layer are the features.

    ``python train.py experiment=pretrain_digits_features`` and ``experiment=pretrain_fashion_features`` train two.

    Args:
        name: of what it classifies.
        image_shape: (C, H, W) of the images.
        num_classes: how many classes.
        num_features: how many features.
        channels, strides: of each 3x3 convolution.
        held_out_accuracy: the share of images that it was not trained on that it classifies right; None until measured.
    """

    def __init__(
        self,
        name: str,
        image_shape: Sequence[int],
        num_classes: int,
        num_features: int,
        channels: Sequence[int],
        strides: Sequence[int],
        held_out_accuracy: float | None = None,
    ) -> None:
        super().__init__()
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
        x = (images.float() - 128) / 127.5
        for conv in self.convs:
            x = F.silu(conv(x))
        return F.silu(self.hidden(x.flatten(1)))

    def classify(self, images: Tensor) -> Tensor:
        """Class logits [B, num_classes] of uint8 images [B, C, H, W]."""
        return self.logits(self.forward(images))

    def save(self, path: Path) -> None:
        """Write the weights, with the arguments that rebuild the network in their metadata."""
        with atomic_file(path) as temporary:
            save_file(self.state_dict(), temporary, metadata={"config": json.dumps(self.config)})


def load_classifier(path: str) -> Classifier:
    """A frozen classifier in eval mode.

    Args:
        path: the file that :meth:`Classifier.save` wrote, or the name of a bundled one: "digits", "fashion".

    Raises:
        ValueError: if there is no such file, or it holds no such network.
    """
    bundled = ASSETS / f"{path}_features.safetensors"
    file = bundled if bundled.is_file() else Path(path)
    if not file.is_file():
        raise ValueError(
            f"no feature network at {file}: train one with experiment=pretrain_digits_features or "
            "experiment=pretrain_fashion_features"
        )
    try:
        with safe_open(file, "pt") as content:
            network = Classifier(**json.loads((content.metadata() or {})["config"]))
            network.load_state_dict({name: content.get_tensor(name) for name in content.keys()})  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file} holds no feature network of experiment=pretrain_..._features ({error})") from error
    return network.eval().requires_grad_(False)

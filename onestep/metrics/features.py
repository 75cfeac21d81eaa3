"""Feature networks: what the metrics see of an image."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from onestep.assets import ASSETS


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, quantised as EDM's generate.py does: ``x * 127.5 + 128``, clipped and truncated."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


class DigitsFeatures(nn.Module):
    """A small classifier of 8x8 digits, whose 64 activations before the last layer are the features.

    ``python train.py experiment=pretrain_digits_features`` trains it.
    """

    num_features = 64
    image_shape = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv1 = nn.Conv2d(32, 64, 3, padding=1, stride=2)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 4 * 4, self.num_features)
        self.logits = nn.Linear(self.num_features, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 64], float32, of uint8 images [B, 1, 8, 8]."""
        x = (images.float() - 128) / 127.5
        for conv in (self.conv0, self.conv1, self.conv2):
            x = F.silu(conv(x))
        return F.silu(self.hidden(x.flatten(1)))

    def classify(self, images: Tensor) -> Tensor:
        """Class logits [B, 10] of uint8 images [B, 1, 8, 8]."""
        return self.logits(self.forward(images))


def load_digits_features(path: str | None = None) -> DigitsFeatures:
    """The digits' feature network from a safetensors file, by default the one in the package; frozen, in eval mode.

    Raises:
        ValueError: if there is no such file.
    """
    file = Path(path) if path is not None else ASSETS / "digits_features.safetensors"
    if not file.is_file():
        raise ValueError(f"no feature network at {file}: train one with experiment=pretrain_digits_features")
    network = DigitsFeatures()
    network.load_state_dict(load_file(file))
    return network.eval().requires_grad_(False)

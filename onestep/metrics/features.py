"""Feature networks: what the metrics see of an image."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from onestep.assets import ASSETS


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, quantised as EDM's generate.py does: ``x * 127.5 + 128``, clipped and truncated."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


class FeatureNetwork(nn.Module):
    """A frozen network from uint8 images [B, C, H, W] to features [B, D].

    Attributes:
        title: how a figure's record names it.
        image_shape: (C, H, W) of the images it takes; None for any.
        protocol_samples: how many samples a published figure in its features has; None where there is no protocol.
    """

    title: str
    image_shape: tuple[int, int, int] | None = None
    protocol_samples: int | None = None

    def classify(self, images: Tensor) -> Tensor:
        """Class logits [B, K], for those that have some."""
        raise ValueError(f"{self.title} knows no classes, which this metric needs: choose other features")

    def similarity(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """How alike each image and its prompt are, [B] in [-1, 1], for those that read text."""
        raise ValueError(f"{self.title} reads no prompts, which this metric needs: choose other features")

    def fingerprint(self) -> str:
        """A hash of the weights, under which the reference's features are kept."""
        digest = hashlib.sha256(type(self).__name__.encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


class DigitsFeatures(FeatureNetwork):
    """A small classifier of 8x8 digits, whose 64 activations before the last layer are the features.

    ``python train.py experiment=pretrain_digits_features`` trains it.
    """

    title = "digits classifier"
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

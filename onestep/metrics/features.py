"""Feature networks: what the metrics see of an image."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn


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

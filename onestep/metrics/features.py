"""Feature networks: the representation of images in which metrics are computed."""

from collections.abc import Sequence

from torch import Tensor, nn

from onestep.files import hash_parts, hash_tensors


class FeatureNetwork(nn.Module):
    """A frozen network from uint8 images [B, C, H, W] to features [B, D].

    Attributes:
        title: its name in the record of a metric.
        image_shape: (C, H, W) of its input images; None for any.
        protocol_samples: the number of samples of published values in its features; None without a protocol.
        differentiable: True if it also takes floats in [0, 255], and its features are differentiable by them.
        map_weights: weights [F] of the channels of each of the ``maps`` in a distance of images; None for 1.
    """

    title: str
    image_shape: tuple[int, int, int] | None = None
    protocol_samples: int | None = None
    differentiable: bool = False
    map_weights: Sequence[Tensor] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, D], float32, of uint8 images [B, C, H, W]."""
        raise ValueError(f"{self.title} has feature maps alone, and this metric needs features: choose features=...")

    def classify(self, images: Tensor) -> Tensor:
        """Class logits [B, K], for networks with classes."""
        raise ValueError(f"{self.title} has no class logits, which this metric needs: choose other features=...")

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        """Feature maps [B, F, h, w] of each layer, differentiable by the images [B, C, H, W], floats in [0, 255]."""
        raise ValueError(
            f"{self.title} has no feature maps for a discriminator or a distance: choose digits, fashion, local, "
            "dinov2, lpips_alex or lpips_vgg"
        )

    def similarity(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The similarity [B] in [-1, 1] of each image and its prompt, for networks that read text."""
        raise ValueError(f"{self.title} reads no prompts, which this metric needs: choose other features=...")

    def fingerprint(self) -> str:
        """A hash of the weights, a part of the key of the reference's features in the cache."""
        return hash_parts([type(self).__name__, hash_tensors(self.state_dict())])

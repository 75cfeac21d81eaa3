"""Feature networks, through which the metrics see an image."""

from collections.abc import Sequence

from torch import Tensor, nn

from onestep.files import hash_parts, hash_tensors


class FeatureNetwork(nn.Module):
    """A frozen network from uint8 images [B, C, H, W] to features [B, D].

    Attributes:
        title: its name in the record of a metric.
        image_shape: (C, H, W) of the images it takes; None for any.
        protocol_samples: the number of samples of published figures in its features; None without a protocol.
    """

    title: str
    image_shape: tuple[int, int, int] | None = None
    protocol_samples: int | None = None

    def classify(self, images: Tensor) -> Tensor:
        """Class logits [B, K], for networks that have classes."""
        raise ValueError(f"{self.title} knows no classes, which this metric needs: choose other features")

    def similarity(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The similarity of each image and its prompt, [B] in [-1, 1], for networks that read text."""
        raise ValueError(f"{self.title} reads no prompts, which this metric needs: choose other features")

    def fingerprint(self) -> str:
        """A hash of the weights, under which the reference's features are kept."""
        return hash_parts([type(self).__name__, hash_tensors(self.state_dict())])

"""The variety of images of one kind: how far two of them are from each other."""

from torch import Tensor
from torch.nn.functional import pdist

from onestep.metrics.features import FeatureNetwork


def variety_of(images: Tensor, network: FeatureNetwork) -> dict[str, float]:
    """The mean distance between two different ones of uint8 ``images`` [N, C, H, W], N > 1.

    Returns:
        ``pixel_distance``, the root mean square of the difference of their pixels in [-1, 1], and
        ``feature_distance``, the Euclidean distance of the network's features.
    """
    pixels = images.double().flatten(1) / 127.5
    in_pixels = pdist(pixels).mean() / pixels.shape[1] ** 0.5
    in_features = pdist(network(images).double()).mean()
    return {"pixel_distance": float(in_pixels), "feature_distance": float(in_features)}

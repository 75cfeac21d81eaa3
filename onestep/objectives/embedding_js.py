"""The Jensen-Shannon divergence of a sample's embedding from that of its ground truth (HF-Diff, arXiv 2411.13548)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.models.pretrained_features import as_pixels, check_channels
from onestep.objectives.reconstruction import FeatureTerm
from onestep.ranges import PositiveRate, checked


@checked
class EmbeddingJensenShannon(FeatureTerm):
    """JS of p = softmax(phi(x_real)) and q = softmax(phi(x_generated)), phi the embedding of a frozen network.

    ``JS = KL(p||m) / 2 + KL(q||m) / 2`` with ``m = (p + q) / 2``: from 0, for equal embeddings, to log 2. It is a
    bounded perceptual distance of one pair, and matches no distributions of samples: its "distributions" are over the
    entries of one embedding. A divergence of p(x | y) is that of the objective.

    HF-Diff names DINOv2 as phi; this form of its term is the most natural reading, as its code has none.

    Args:
        network: a :class:`onestep.metrics.features.FeatureNetwork` that is differentiable.
        weight: of the term.

    Raises:
        ValueError: for a network that is not.
    """

    def __init__(self, network: Any, weight: PositiveRate) -> None:
        if not getattr(network, "differentiable", False):
            # A choice of none is a mapping.
            absent = network is None or isinstance(network, dict)
            name = "no network" if absent else getattr(network, "title", type(network).__name__)
            raise ValueError(
                f"terms.embedding_js.network: got {name}, expected one whose features are differentiable by the image: "
                "choose features@terms.embedding_js.network=digits, fashion, local or dinov2"
            )
        self.network = network.eval().requires_grad_(False)
        self.weight = weight

    def features(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.network(as_pixels(x, self.network))
        return embedding

    def compare(self, generated: Tensor, real: Tensor) -> Tensor:
        return jensen_shannon(real, generated)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        check_channels(self.network, image_shape[0], "terms.embedding_js.network")


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """The Jensen-Shannon divergence [B], in nats, of softmax(a) and softmax(b), both [B, D]."""
    log_p, log_q = a.log_softmax(1), b.log_softmax(1)
    d = (log_p - log_q) / 2
    # p log(p/m) + q log(q/m) = 2 m h(d) with h(d) = d tanh(d) - log cosh(d), which is never negative. The two forms of
    # h keep its digits for small and for large d.
    small, large = d.clamp(-1, 1), d.abs()
    tanh = small.tanh()
    near = small * tanh + torch.log1p(-tanh.square()) / 2
    far = math.log(2) - 2 * large * torch.sigmoid(-2 * large) - F.softplus(-2 * large)
    mean = (log_p.exp() + log_q.exp()) / 2
    return (mean * torch.where(large < 1, near, far)).sum(1)

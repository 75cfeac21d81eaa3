"""CLIP score: agreement of images with their prompts (Hessel et al. 2021, arXiv 2104.08718)."""

from typing import Any

from torch import Tensor

from onestep.metrics.extraction import Kind
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.transformer_features import CLIPFeatures


class CLIPScore:
    """The mean over samples of ``100 max(cosine of image and prompt, 0)``. It uses no real images.

    Args:
        features: the CLIP model.
    """

    reads: Kind = "similarities"
    title = "CLIP score"
    higher_is_better = True

    def __init__(self, features: CLIPFeatures) -> None:
        self.features: FeatureNetwork | None = features

    def __call__(self, real: Any, generated: Tensor) -> float:
        """The CLIP score in [0, 100] for cosines ``generated`` [N]; ``real`` is unused."""
        return float(100 * generated.double().clamp_min(0).mean())

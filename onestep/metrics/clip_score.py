"""How well images show what their prompts say (Hessel et al. 2021, arXiv 2104.08718)."""

from typing import Any

from torch import Tensor

from onestep.metrics.extraction import Kind
from onestep.metrics.features import FeatureNetwork
from onestep.metrics.transformer_features import CLIPFeatures


class CLIPScore:
    """``100 max(cosine of image and prompt, 0)``, the mean over samples; the real images are not looked at.

    Args:
        features: the CLIP model.
    """

    reads: Kind = "similarities"
    title = "CLIP score"
    higher_is_better = True

    def __init__(self, features: CLIPFeatures) -> None:
        self.features: FeatureNetwork | None = features

    def __call__(self, real: Any, generated: Tensor) -> float:
        """The score in [0, 100] of cosines ``generated`` [N]."""
        return float(100 * generated.double().clamp_min(0).mean())

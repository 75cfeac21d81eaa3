"""The feature networks of torch-fidelity and clean-fid, from these libraries; each needs its extra.

FIDs of different protocols are not comparable. Their records name the protocol.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from onestep.metrics.features import FeatureNetwork
from onestep.metrics.inception import InceptionFeatures
from onestep.ranges import PathText, Samples, Text


class TorchFidelityFeatures(FeatureNetwork):
    """torch-fidelity's port of the original Inception (``pip install 'onestep[torch-fidelity]'``).

    Args:
        weights: the file of its weights; None for torch-fidelity's download.
        protocol_samples: samples of a published value.

    Raises:
        ValueError: without the extra.
    """

    title = "torch-fidelity inception-v3-compat"

    def __init__(self, weights: PathText | None, protocol_samples: Samples | None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ValueError(
                f"torch-fidelity's features need an extra: pip install 'onestep[torch-fidelity]' ({error})"
            ) from error
        kinds = ["2048", "logits_unbiased"]
        self.network = FeatureExtractorInceptionV3("inception-v3-compat", kinds, feature_extractor_weights_path=weights)
        self.protocol_samples = protocol_samples
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 2048] of uint8 images [B, 3, H, W]."""
        return self.network(images)[0]

    def classify(self, images: Tensor) -> Tensor:
        """Logits [B, 1008] without bias, for the Inception Score."""
        return self.network(images)[1]


class CleanFeatures(InceptionFeatures):
    """NVIDIA's Inception behind clean-fid's antialiased resizing (Parmar et al. 2022, arXiv 2104.11222).

    Needs ``pip install 'onestep[clean-fid]'``. The network is loaded here, as clean-fid does not check its hash. See
    :class:`onestep.metrics.inception.InceptionFeatures` for the arguments.

    Raises:
        ValueError: without the extra.
    """

    def __init__(self, path: PathText, sha256: Text, url: Text | None, protocol_samples: Samples | None) -> None:
        try:
            from cleanfid.resize import build_resizer
        except ImportError as error:
            raise ValueError(
                f"clean-fid's features need an extra: pip install 'onestep[clean-fid]' ({error})"
            ) from error
        super().__init__(path, sha256, url, protocol_samples)
        self.title = f"clean-fid, {self.title}"
        self.resize: Any = build_resizer("clean")

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 2048] of uint8 images [B, 1 or 3, H, W]."""
        pixels = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
        resized = torch.from_numpy(np.stack([self.resize(image) for image in pixels])).permute(0, 3, 1, 2)
        return self.network.layers((resized.to(images.device) - 128) / 128).flatten(1)

    def fingerprint(self) -> str:
        return f"clean {super().fingerprint()}"

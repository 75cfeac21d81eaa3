"""The Frechet distance of two sets of features: with Inception features it is the FID (arXiv 1706.08500)."""

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance


class FrechetDistance:
    """``|mu_p - mu_q|^2 + tr(C_p + C_q - 2 (C_p C_q)^(1/2))``, computed by torchmetrics in float64."""

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """The distance between ``real`` [M, D] and ``generated`` [N, D] features."""
        identity = nn.Identity()
        identity.num_features = real.shape[1]  # type: ignore[assignment]
        # The main process scores alone: a synchronisation would wait for the others for ever.
        distance = FrechetInceptionDistance(feature=identity, input_img_size=(real.shape[1],), sync_on_compute=False)
        distance.set_dtype(torch.float64)
        distance.update(real.double(), real=True)
        distance.update(generated.double(), real=False)
        return float(distance.compute())

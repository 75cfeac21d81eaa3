"""The discriminator: a small head on the features of another network; its logit estimates log p/q."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from onestep.ranges import Width, checked


@checked
class Discriminator(nn.Module):
    """Logits [B] from the last encoder features [B, C, h, w] of a noised image.

    With the logistic loss on noised real and generated samples, the optimal logit is ``log p/q``. The features depend
    on the noise level and the class already. They come from

    - ``"teacher"``: the frozen teacher (f-distill, arXiv 2502.15681, sec. 3), or
    - ``"fake_score"``: the fake score's encoder, which the discriminator's loss trains too (DMD2, arXiv
      2405.14867, sec. 4.3; SiDA, arXiv 2410.14919; Uni-Instruct, arXiv 2505.20755).

    Args:
        feature_channels: channels C of the features.
        features_from: the network that computes them.
        hidden: channels of the head.

    Raises:
        ValueError: for another ``features_from``.
    """

    def __init__(self, feature_channels: Width, features_from: Literal["teacher", "fake_score"], hidden: Width) -> None:
        super().__init__()
        self.features_from = features_from
        self.norm = nn.GroupNorm(1, feature_channels)
        self.conv0 = nn.Conv2d(feature_channels, hidden, 3, padding=1)
        self.conv1 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.logit = nn.Linear(hidden, 1)
        # The initial estimate is log r = 0.
        nn.init.zeros_(self.logit.weight)
        nn.init.zeros_(self.logit.bias)

    def forward(self, features: Tensor) -> Tensor:
        # Contiguous: the backward pass of torch 2.13's GroupNorm crashes on the CPU for a channels-last input without
        # gradient, such as the features of a frozen teacher.
        x = F.silu(self.conv0(self.norm(features.contiguous())))
        x = F.silu(self.conv1(x))
        return self.logit(x.mean((2, 3))).squeeze(1).float()

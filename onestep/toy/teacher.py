"""An exact teacher: the denoiser of a Gaussian mixture."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onestep.denoiser import NO_CONDITION, Condition
from onestep.ranges import Guidance
from onestep.toy.gaussian_mixture import GaussianMixture


class MixtureTeacher(nn.Module):
    """The posterior mean of a ``mixture`` over points [B, D, 1, 1]: exact, without weights or features.

    Generator and fake score cannot start from a copy of it, and a discriminator cannot read its features. The
    configuration gives them other networks. Raises ValueError for a ``guidance`` other than 1.
    """

    label_dim = 0
    condition_keys: tuple[str, ...] = ()
    pipeline = None
    denoises_latents = False
    network_evaluations = 1
    feature_shapes: Sequence[tuple[int, int, int]] = ()

    def __init__(self, mixture: GaussianMixture, guidance: Guidance) -> None:
        super().__init__()
        if guidance != 1:
            raise ValueError(f"teacher.guidance={guidance}: a mixture has no classes for guidance; use guidance=1")
        self.guidance = guidance
        self.mixture = mixture.to(dtype=torch.float32)
        self.config = {name: value.tolist() for name, value in vars(mixture).items()}  # the mixture in plain numbers
        self.image_shape = (mixture.means.shape[1], 1, 1)

    def forward(self, x_sigma: Tensor, sigma: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        """The x0-prediction [B, D, 1, 1] at ``x_sigma`` [B, D, 1, 1] and ``sigma`` [B], computed in float32."""
        if self.mixture.means.device != x_sigma.device:
            self.mixture = self.mixture.to(device=x_sigma.device)
        with torch.autocast(x_sigma.device.type, enabled=False):
            return self.mixture.denoise(x_sigma.float(), sigma.float())

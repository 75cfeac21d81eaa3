"""EDM's preconditioning around a raw network: the denoiser that EDM's checkpoints and their descendants hold."""

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from onestep.denoiser import Condition
from onestep.networks.base import DenoiserNetwork, Outputs
from onestep.networks.planar import MLP, Affine
from onestep.networks.song_unet import SongUNet
from onestep.noise import expand_like

ARCHITECTURES: dict[str, Any] = {"SongUNet": SongUNet, "MLP": MLP, "Affine": Affine}


class EDMDenoiser(DenoiserNetwork):
    """A raw network under EDM's preconditioning (arXiv 2206.00364, table 1, column "EDM").

    Args:
        image_shape: (channels, height, width) of the images, which are square.
        label_dim: number of classes; 0 for an unconditional network.
        sigma_data: standard deviation of the data, in data units.
        sigma_min, sigma_max: the noise levels between which the network was trained, in data units.
        architecture: the raw network's class, a name in ``ARCHITECTURES``.
        options: its further arguments.

    Raises:
        ValueError: for an unknown architecture or images that are not square.
    """

    @register_to_config
    def __init__(
        self,
        image_shape: tuple[int, int, int],
        label_dim: int = 0,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        architecture: str = "SongUNet",
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {architecture!r}: choose one of {sorted(ARCHITECTURES)}")
        channels, height, width = image_shape
        if height != width:
            raise ValueError(f"this network takes square images, got {height}x{width}")
        self.model = ARCHITECTURES[architecture](height, channels, label_dim, **(options or {}))
        self.image_shape = (channels, height, width)
        self.label_dim = label_dim
        self.sigma_data = sigma_data
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    @property
    def knows_unconditional(self) -> bool:
        """Whether it was trained with label dropout."""
        return bool(self.label_dim and (self.config["options"] or {}).get("label_dropout"))

    @property
    def feature_channels(self) -> int:
        """Channels of the encoder's last output."""
        return self.model.feature_channels

    def evaluate(  # type: ignore[override] # `extra` is one optional tensor here
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        condition: Condition,
        augment_labels: Tensor | None = None,
        *,
        outputs: Outputs,
        prediction_grad: bool,
    ) -> Any:
        """See :meth:`forward`; ``augment_labels`` [B, augment_dim] are those of EDM's augmentation, None for none.

        The features are the encoder's last output [B, F, h, w].
        """
        sigma_wide = expand_like(sigma, x_sigma)
        scale = (sigma_wide**2 + self.sigma_data**2).sqrt()
        embedding = self.model.embed(sigma.log() / 4, condition, augment_labels)
        encoded = self.model.encode(x_sigma / scale, embedding)
        if outputs == "features":
            return encoded[-1]
        with torch.set_grad_enabled(torch.is_grad_enabled() and prediction_grad):
            raw = self.model.decode(encoded, embedding).to(x_sigma.dtype)
            c_skip = (self.sigma_data / scale) ** 2
            prediction = c_skip * x_sigma + (sigma_wide * self.sigma_data / scale) * raw
        return (prediction, encoded[-1]) if outputs == "both" else prediction

    def denoising_weight(self, sigma: Tensor) -> Tensor:
        """The weight [B] of the squared x0-error in EDM's training loss (table 1): ``(s^2 + sd^2) / (s * sd)^2``."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

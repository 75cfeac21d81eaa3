"""EDM's preconditioning around a raw network: the denoiser that EDM's checkpoints and their descendants hold."""

from typing import Any, Literal, Self, overload

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from onestep.networks.planar import MLP, Affine
from onestep.networks.song_unet import SongUNet
from onestep.noise import expand_like

ARCHITECTURES: dict[str, Any] = {"SongUNet": SongUNet, "MLP": MLP, "Affine": Affine}


class EDMDenoiser(ModelMixin, ConfigMixin):
    """A raw network under EDM's preconditioning (arXiv 2206.00364, table 1, column "EDM").

    It saves and loads as a diffusers model does, with ``save_pretrained`` and ``from_pretrained``: safetensors beside a
    ``config.json`` that rebuilds it.

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
        self.guidance = 1.0  # a way of using the network, and so no part of its config

    def set_guidance(self, guidance: float) -> Self:
        """From now on a conditional prediction is ``unconditional + guidance * (conditional - unconditional)``.

        Classifier-free guidance (arXiv 2207.12598); 1 for none.

        Raises:
            ValueError: if the network was not trained to do without a class.
        """
        if guidance != 1 and not (self.label_dim and (self.config["options"] or {}).get("label_dropout")):
            raise ValueError(
                f"guidance={guidance}: this network was trained without classes or without label dropout, so it knows "
                "no unconditional prediction to guide by; use a guidance of 1, or another teacher"
            )
        self.guidance = guidance
        return self

    @property
    def network_evaluations(self) -> int:
        """Evaluations of the raw network that a prediction costs: two under guidance, in one batch."""
        return 1 if self.guidance == 1 else 2

    @property
    def feature_channels(self) -> int:
        """Channels of the features that ``return_features`` gives."""
        return self.model.feature_channels

    @overload
    def forward(
        self, x_sigma: Tensor, sigma: Tensor, condition: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        condition: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        outputs: Literal["features"],
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        condition: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        outputs: Literal["both"],
        prediction_grad: bool = True,
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        condition: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        outputs: Literal["prediction", "features", "both"] = "prediction",
        prediction_grad: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The x0-prediction [B, C, H, W], the encoder's last output [B, F, h, w], or both from one pass.

        Args:
            x_sigma: noised images [B, C, H, W], in data units.
            sigma: their noise levels [B], in data units.
            condition: one-hot labels [B, label_dim]; None for none.
            augment_labels: EDM's augmentation labels [B, augment_dim]; None for none.
            outputs: "prediction", "features" (the decoder is not run) or "both".
            prediction_grad: False runs the decoder without a graph: the features alone carry gradients.

        Under guidance the features are those of the conditional half.
        """
        if self.guidance == 1 or condition is None or outputs == "features":
            return self._evaluate(x_sigma, sigma, condition, augment_labels, outputs, prediction_grad)
        # Both predictions in one batch; no class is the zero vector, as in label dropout.
        both, features = self._evaluate(
            torch.cat([x_sigma, x_sigma]),
            torch.cat([sigma, sigma]),
            torch.cat([condition, torch.zeros_like(condition)]),
            None if augment_labels is None else torch.cat([augment_labels, augment_labels]),
            "both",
            prediction_grad,
        )
        conditional, unconditional = both.chunk(2)
        prediction = torch.lerp(unconditional, conditional, self.guidance)
        return prediction if outputs == "prediction" else (prediction, features[: len(x_sigma)])

    def _evaluate(
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        condition: Tensor | None,
        augment_labels: Tensor | None,
        outputs: Literal["prediction", "features", "both"],
        prediction_grad: bool,
    ) -> Any:
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

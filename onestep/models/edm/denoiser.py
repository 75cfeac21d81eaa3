"""A raw network with one of EDM's preconditionings, as in the checkpoints of EDM, EDM2 and their descendants."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.models.base import DenoiserNetwork, Outputs
from onestep.models.edm.adm import DhariwalUNet
from onestep.models.edm.preconditioning import PRECONDITIONINGS, make_preconditioning
from onestep.models.edm.song_unet import SongUNet
from onestep.models.edm2.unet import EDM2UNet
from onestep.noise import check_levels, expand_like
from onestep.ranges import ArgumentsOf, Classes, ImageShape, Positive, checked
from onestep.toy.networks import MLP, Affine

ARCHITECTURES: dict[str, Any] = {
    "SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet, "EDM2UNet": EDM2UNet, "MLP": MLP, "Affine": Affine,
}  # fmt: skip
_Options = Annotated[
    dict[str, Any] | None,
    ArgumentsOf("architecture", ARCHITECTURES, given=("img_resolution", "img_channels", "label_dim", "out_channels")),
]
#: How a network takes the image of its condition.
ImageCondition = Literal["none", "input", "residual"]
_PreconditioningOptions = Annotated[
    dict[str, Any] | None, ArgumentsOf("preconditioning", PRECONDITIONINGS, given=("sigma_data",))
]


@checked
class EDMDenoiser(DenoiserNetwork):
    """A raw network with a preconditioning (arXiv 2206.00364, table 1).

    Args:
        image_shape: (channels, height, width) of the images, which are square.
        label_dim: number of classes; 0 for an unconditional network.
        sigma_data: standard deviation of the data, in data units.
        sigma_min, sigma_max: range of the training noise levels, in data units.
        architecture: class of the raw network, a name in ``ARCHITECTURES``.
        options: further arguments of the raw network.
        preconditioning: "edm", "vp", "ve" or "iddpm".
        preconditioning_options: its further arguments, see :mod:`onestep.models.edm.preconditioning`.
        latent: True if its images are the latents of an autoencoder.
        image_condition: how it takes the image y of its condition, of the samples' shape. "none": not at all. "input":
            as further channels of the raw network's input. "residual": besides,
            ``D(x_sigma, sigma, y) = y + D_edm(x_sigma - y, sigma; y)``, with the ``sigma_data`` of ``x0 - y``; its
            sampler starts at y plus noise. This is residual shifting (ResShift, arXiv 2307.12348), see
            docs/super_resolution.md.

    Raises:
        ValueError: for an unknown architecture or preconditioning, images that are not square, noise levels that are
            not positive and ascending, a dropout outside [0, 1), or label dropout of a network with image conditions.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        label_dim: Classes = 0,
        sigma_data: Positive = 0.5,
        sigma_min: Positive = 0.002,
        sigma_max: Positive = 80.0,
        architecture: Literal["SongUNet", "DhariwalUNet", "EDM2UNet", "MLP", "Affine"] = "SongUNet",
        options: _Options = None,
        preconditioning: Literal["edm", "vp", "ve", "iddpm"] = "edm",
        preconditioning_options: _PreconditioningOptions = None,
        latent: bool = False,
        image_condition: ImageCondition = "none",
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if image_condition == "none":  # the configuration, and with it the keys of caches, of other networks
            del settings["image_condition"]
        elif (options or {}).get("label_dropout"):
            raise ValueError(
                f"label_dropout={(options or {})['label_dropout']} with image_condition={image_condition}: a network "
                "with image conditions has no guidance: set label_dropout=0"
            )
        super().__init__()
        self._settings = settings
        check_levels(sigma_min, sigma_max)
        channels, height, width = image_shape
        if height != width:
            raise ValueError(f"image_shape={tuple(image_shape)}: expected square images")
        self.precondition = make_preconditioning(preconditioning, sigma_data, preconditioning_options or {})
        inputs = channels if image_condition == "none" else 2 * channels
        outputs = self.precondition.outputs_per_channel * channels
        wider = {} if outputs == inputs else {"out_channels": outputs}
        self.model = ARCHITECTURES[architecture](height, inputs, label_dim, **(options or {}), **wider)
        self.image_condition = image_condition
        self.image_shape = (channels, height, width)
        self.label_dim = label_dim
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    @property
    def config(self) -> Mapping[str, Any]:
        """Its arguments."""
        return self._settings

    @property
    def denoises_latents(self) -> bool:
        """True if it denoises the latents of an autoencoder."""
        return bool(self.config["latent"])

    @property
    def condition_keys(self) -> tuple[str, ...]:
        """``labels`` if it has classes, and ``image`` [B, C, H, W] if it takes one."""
        return super().condition_keys + (() if self.image_condition == "none" else ("image",))

    @property
    def requires_condition(self) -> bool:
        """True if it takes an image."""
        return self.image_condition != "none"

    def sampling_mean(self, condition: Condition) -> Tensor | None:
        """The image of the condition for a residual shift, else None."""
        return condition["image"] if self.image_condition == "residual" else None

    @property
    def supports_guidance(self) -> bool:
        """True if it was trained with label dropout."""
        return bool(self.label_dim and (self.config["options"] or {}).get("label_dropout"))

    @property
    def augment_dim(self) -> int:
        """Size of its input of EDM's augmentation labels; 0 for none."""
        return int((self.config["options"] or {}).get("augment_dim", 0))

    @property
    def feature_shapes(self) -> Sequence[tuple[int, int, int]]:
        """Those of the encoder's last output at each resolution."""
        return self.model.feature_shapes

    @property
    def level_embeddings(self) -> Sequence[nn.Module]:
        """The last layer of the raw network's embedding of the noise level."""
        name = self.model.level_layer
        return () if name is None else (getattr(self.model, name),)

    @property
    def optional_keys(self) -> tuple[str, ...]:
        """``augment_labels`` [B, augment_dim], which describe EDM's augmentation; none is zeros."""
        return ("augment_labels",) if self.augment_dim else ()

    def predict(
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        condition: Condition,
        /,
        *,
        outputs: Outputs,
        levels: Sequence[int],
        prediction_grad: bool,
    ) -> Any:
        """See :meth:`forward`."""
        c_skip, c_out, c_in, c_noise = self.precondition.coefficients(sigma)
        embedding = self.model.embed(c_noise, condition.get("labels"), condition.get("augment_labels"))
        layers = [] if outputs == "prediction" else [self.model.feature_layers[level] for level in levels]
        stop = max(layers) + 1 if outputs == "features" else None
        mean = self.sampling_mean(condition)
        centred = x_sigma if mean is None else x_sigma - mean
        encoded = self.model.encode(self._with_image(expand_like(c_in, centred) * centred, condition), embedding, stop)
        features = tuple(encoded[layer] for layer in layers)
        if outputs == "features":
            return features
        with torch.set_grad_enabled(torch.is_grad_enabled() and prediction_grad):
            raw = self.model.decode(encoded, embedding).to(x_sigma.dtype)[:, : x_sigma.shape[1]]
            prediction = expand_like(c_skip, x_sigma) * centred + expand_like(c_out, x_sigma) * raw
            prediction = prediction if mean is None else mean + prediction
        return (prediction, *features) if outputs == "both" else prediction

    def _with_image(self, x: Tensor, condition: Condition) -> Tensor:
        """``x`` [B, C, H, W], followed by the channels of the condition's image if the network takes one.

        Raises:
            ValueError: for an image of another shape.
        """
        if self.image_condition == "none":
            return x
        image = condition["image"]
        if image.shape != x.shape:
            raise ValueError(
                f"the image of the condition is {tuple(image.shape)} and the sample {tuple(x.shape)}: resize it to the "
                "sample's size"
            )
        return torch.cat([x, image.to(x.dtype)], 1)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """The weight [B] of the squared x0-error in the training loss of this preconditioning (table 1)."""
        return self.precondition.loss_weight(sigma)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The training levels nearest to ``sigma`` (any shape)."""
        return self.precondition.round_sigma(sigma)

"""The interface of every denoiser that is a network: its outputs, its guidance, and how the package uses it."""

import copy
import json
from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, overload

import torch
from diffusers import ConfigMixin, ModelMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from onestep.denoiser import NO_CONDITION, Condition, check_condition, concatenate_conditions
from onestep.files import atomic_file, write_text
from onestep.models.diffusers.pipeline import TeacherPipeline
from onestep.noise import karras_sigmas

#: The file of a network's weights in its folder, as diffusers names it.
WEIGHTS = "diffusion_pytorch_model.safetensors"

Outputs = Literal["prediction", "features", "both"]
Network = TypeVar("Network", bound=nn.Module)


class _FeaturesReachedError(Exception):
    """Ends a pass of which only the features are needed."""


class DenoiserNetwork(nn.Module, ABC):
    """A network in the package's convention: it predicts x0 from ``x0 + sigma * noise``, whatever its family.

    A wrapper of your own sets ``image_shape``, ``sigma_min`` and ``sigma_max`` and implements :meth:`denoise`; all else
    has a default.

    Attributes:
        image_shape: (channels, height, width) of what it denoises, for a latent model the latents.
        label_dim: number of classes; 0 for none.
        sigma_min, sigma_max: the noise levels between which it was trained, in data units.
        sigma_data: standard deviation of the data, in data units.
        denoises_latents: whether ``image_shape`` is of latents, which an autoencoder decodes.
        pipeline: the autoencoder and text encoders that it came with; None where none are known.
        feature_channels: channels F of the features that a discriminator can read; 0 for none.
        feature_block: the submodule whose output the features are; None for none.
        supports_guidance: whether it was trained without a condition too, as guidance needs.
    """

    image_shape: tuple[int, int, int]
    label_dim: int = 0
    sigma_min: float
    sigma_max: float
    sigma_data: float = 0.5
    guidance = 1.0  # a way of using the network, and so no part of its config
    unconditional: Condition = NO_CONDITION  # of one sample; none for zeros
    pipeline: TeacherPipeline | None = None  # which students share with their teacher

    def denoise(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The x0-prediction [B, C, H, W], without guidance; the arguments are those of :meth:`forward`."""
        raise NotImplementedError(f"{type(self).__name__} must implement denoise")

    @property
    def denoises_latents(self) -> bool:
        """Whether an autoencoder decodes what it denoises."""
        return False

    @property
    def condition_keys(self) -> tuple[str, ...]:
        """Names of the tensors in its condition; by default the labels, if it has classes."""
        return ("labels",) if self.label_dim else ()

    @property
    def requires_condition(self) -> bool:
        """Whether it is never called without its condition; if not, that is the zero vector of classes."""
        return False

    @property
    def feature_channels(self) -> int:
        """Channels F of the features that a discriminator can read; 0 for none."""
        return 0

    @property
    def feature_block(self) -> nn.Module | None:
        """The submodule whose output the features are; None for none."""
        return None

    def read_features(self, output: Any, x_sigma: Tensor) -> Tensor:
        """The features [B, F, h, w] from the output of :attr:`feature_block`; by default the output itself."""
        return output

    @property
    def supports_guidance(self) -> bool:
        """Whether it was trained without a condition too, as guidance needs."""
        return False

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    @property
    def config(self) -> Mapping[str, Any]:
        """Plain values that describe it."""
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", "image_shape": list(self.image_shape)}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write its weights as safetensors, with a ``config.json`` that names its class.

        A :class:`StoredDenoiser` is rebuilt of its folder alone; one of your own by :meth:`load_weights`.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        with atomic_file(Path(folder) / WEIGHTS) as temporary:
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, temporary)
        write_text(Path(folder) / "config.json", json.dumps({"_class_name": type(self).__name__, **self.config}) + "\n")

    def load_weights(self, folder: str | Path) -> Self:
        """Take over the weights that :meth:`save_pretrained` wrote into ``folder``, and return itself, in eval mode.

        Raises:
            ValueError: if there are none, or they do not fit.
        """
        try:
            self.load_state_dict(load_file(Path(folder) / WEIGHTS))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"the weights at {str(folder)!r} do not fit {type(self).__name__}: {error}") from error
        return self.eval()

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """The weight [B] of the squared x0-error at ``sigma`` [B] in the loss that it is trained by.

        By default EDM's, ``1 / sigma^2 + 1 / sigma_data^2`` (arXiv 2206.00364, table 1).
        """
        return sigma**-2 + self.sigma_data**-2

    def sampling_sigmas(self, steps: int) -> list[float]:
        """The descending noise levels by which its own sampler takes ``steps`` steps, the end, 0, included."""
        return [*self.round_sigma(karras_sigmas(steps, self.sigma_min, self.sigma_max)).tolist(), 0.0]

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The levels next to ``sigma`` (of any shape) among those that it was trained at: by default, all."""
        return sigma

    def predict(
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        condition: Condition,
        /,
        *extra: Any,
        outputs: Outputs,
        prediction_grad: bool,
    ) -> Any:
        """:meth:`forward` without guidance: by default :meth:`denoise`, and the features of :attr:`feature_block`."""
        if outputs == "prediction":
            return self.denoise(x_sigma, sigma, condition)
        features: list[Tensor] = []

        def read(module: nn.Module, inputs: Any, output: Any) -> None:
            features.append(self.read_features(output, x_sigma))
            if outputs == "features":
                raise _FeaturesReachedError
            torch.set_grad_enabled(torch.is_grad_enabled() and prediction_grad)

        assert self.feature_block is not None  # a discriminator was refused when the run was built
        hook = self.feature_block.register_forward_hook(read)
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled()):
                prediction = self.denoise(x_sigma, sigma, condition)
        except _FeaturesReachedError:
            return features[0]
        finally:
            hook.remove()
        return prediction, features[0]

    def init_noise_sigma(self, sigma: float) -> float:
        """The standard deviation of the noise that a generator starts from at ``sigma``, in data units."""
        return sigma

    def set_guidance(self, guidance: float, unconditional: Condition = NO_CONDITION) -> Self:
        """From now on a conditional prediction is ``unconditional + guidance * (conditional - unconditional)``.

        Classifier-free guidance (arXiv 2207.12598); 1 for none.

        Args:
            guidance: its scale.
            unconditional: the condition of one sample [1, ...] to guide away from, such as the empty prompt's
                embeddings; none for zeros.

        Raises:
            ValueError: if the network was not trained to do without a condition.
        """
        if guidance != 1 and not self.supports_guidance:
            raise ValueError(
                f"guidance={guidance}: this network was trained without classes or without label dropout, so it knows "
                "no unconditional prediction to guide by; use a guidance of 1, or another teacher"
            )
        self.guidance, self.unconditional = guidance, unconditional
        return self

    @property
    def network_evaluations(self) -> int:
        """Evaluations of the raw network that a prediction costs: two under guidance, in one batch."""
        return 1 if self.guidance == 1 else 2

    @overload
    def forward(
        self, x_sigma: Tensor, sigma: Tensor, condition: Condition = NO_CONDITION, *extra: Tensor | None
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        condition: Condition = NO_CONDITION,
        *extra: Tensor | None,
        outputs: Literal["features"],
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        condition: Condition = NO_CONDITION,
        *extra: Tensor | None,
        outputs: Literal["both"],
        prediction_grad: bool = True,
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        condition: Condition = NO_CONDITION,
        *extra: Tensor | None,
        outputs: Outputs = "prediction",
        prediction_grad: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The x0-prediction [B, C, H, W], the features [B, F, h, w] of its middle, or both from one pass.

        Args:
            x_sigma: noised images [B, C, H, W], in data units.
            sigma: their noise levels [B], in data units.
            condition: of the names in :attr:`condition_keys` [B, ...]; empty for none.
            extra: what else this kind of network takes [B, ...], see its ``predict``.
            outputs: "prediction", "features" (nothing behind them is run) or "both".
            prediction_grad: False runs what is behind the features without a graph: they alone carry gradients.

        Under guidance the features are those of the conditional half.

        Raises:
            ValueError: for a condition of other names than the network takes.
        """
        check_condition(condition, self.condition_keys, self.requires_condition)
        options: dict[str, Any] = {"outputs": outputs, "prediction_grad": prediction_grad}
        if self.network_evaluations == 1 or not condition or outputs == "features":
            return self.predict(x_sigma, sigma, condition, *extra, **options)
        # Both predictions in one batch.
        result = self.predict(
            torch.cat([x_sigma, x_sigma]),
            torch.cat([sigma, sigma]),
            concatenate_conditions(condition, self._unconditional_like(condition)),
            *(None if tensor is None else torch.cat([tensor, tensor]) for tensor in extra),
            **options,
        )
        both = result[0] if outputs == "both" else result
        conditional, unconditional = both.chunk(2)
        prediction = torch.lerp(unconditional, conditional, self.guidance)
        return (prediction, result[1][: len(x_sigma)]) if outputs == "both" else prediction

    def _unconditional_like(self, condition: Condition) -> Condition:
        if self.unconditional:
            check_condition(self.unconditional, self.condition_keys, required=True)
            return {name: self.unconditional[name].to(given).expand_as(given) for name, given in condition.items()}
        if self.requires_condition:
            raise ValueError(
                f"guidance={self.guidance} by {', '.join(self.condition_keys)} needs the condition to guide away from, "
                "such as the embeddings of the empty prompt: set_guidance(guidance, unconditional={...})"
            )
        return {name: torch.zeros_like(given) for name, given in condition.items()}


class StoredDenoiser(ModelMixin, DenoiserNetwork, ConfigMixin):
    """A denoiser that saves and loads as a diffusers model does: safetensors beside a config that rebuilds it."""

    config = ConfigMixin.config
    register_to_config: Any  # of ConfigMixin
    enable_gradient_checkpointing: Any  # of ModelMixin


def copy_trained(network: Network) -> Network:
    """A copy of ``network`` with parameters of its own where they are trained; the frozen ones are the very same."""
    return copy.deepcopy(network, {id(p): p for p in network.parameters() if not p.requires_grad})

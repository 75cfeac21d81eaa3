"""What every denoiser that is a network shares: guidance, its outputs, and how the rest of the package uses it."""

import copy
from abc import ABC, abstractmethod
from typing import Any, Literal, Self, TypeVar, overload

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn

from onestep.denoiser import NO_CONDITION, Condition, check_condition, concatenate_conditions
from onestep.models.diffusers.pipeline import TeacherPipeline
from onestep.noise import karras_sigmas

Outputs = Literal["prediction", "features", "both"]
Network = TypeVar("Network", bound=nn.Module)


class DenoiserNetwork(ModelMixin, ConfigMixin, ABC):
    """A network in the package's convention: it predicts x0 from ``x0 + sigma * noise``, whatever its family.

    It saves and loads as a diffusers model does, with ``save_pretrained`` and ``from_pretrained``: safetensors beside a
    ``config.json`` that rebuilds it. A subclass sets:

    Attributes:
        image_shape: (channels, height, width) of what it denoises, for a latent model the latents.
        label_dim: number of classes; 0 for none.
        denoises_latents: whether ``image_shape`` is of latents, which an autoencoder decodes.
        pipeline: the autoencoder and text encoders that it came with; None where none are known.
        sigma_min, sigma_max: the noise levels between which it was trained, in data units.
        feature_channels: channels of the features that a discriminator can read; 0 for none.
    """

    image_shape: tuple[int, int, int]
    label_dim: int
    sigma_min: float
    sigma_max: float
    guidance = 1.0  # a way of using the network, and so no part of its config
    unconditional: Condition = NO_CONDITION  # of one sample; none for zeros
    denoises_latents = False
    pipeline: TeacherPipeline | None = None  # which students share with their teacher

    @property
    def condition_keys(self) -> tuple[str, ...]:
        """Names of the tensors in its condition; by default the labels, if it has classes."""
        return ("labels",) if self.label_dim else ()

    @property
    def requires_condition(self) -> bool:
        """Whether it is never called without its condition; if not, that is the zero vector of classes."""
        return False

    @property
    @abstractmethod
    def feature_channels(self) -> int: ...

    @property
    @abstractmethod
    def supports_guidance(self) -> bool:
        """Whether it was trained to do without a condition too, as guidance needs."""

    @abstractmethod
    def loss_weight(self, sigma: Tensor) -> Tensor:
        """The weight [B] of the squared x0-error at ``sigma`` [B] in the loss that the network was trained by."""

    def sampling_sigmas(self, steps: int) -> list[float]:
        """The descending noise levels by which its own sampler takes ``steps`` steps, the end, 0, included."""
        return [*self.round_sigma(karras_sigmas(steps, self.sigma_min, self.sigma_max)).tolist(), 0.0]

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The levels next to ``sigma`` (of any shape) among those that the network was trained at: by default, all."""
        return sigma

    @abstractmethod
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
        """:meth:`forward` without guidance."""

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


def copy_trained(network: Network) -> Network:
    """A copy of ``network`` with parameters of its own where they are trained; the frozen ones are the very same."""
    return copy.deepcopy(network, {id(p): p for p in network.parameters() if not p.requires_grad})

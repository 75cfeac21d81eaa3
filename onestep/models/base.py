"""The interface of denoisers that are networks: predictions, features, guidance, saving and loading."""

import copy
import json
from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

import torch
from torch import Tensor, nn

from onestep.denoiser import NO_CONDITION, Condition, check_condition, concatenate_conditions
from onestep.models.guidance import PLAIN, GuidanceRule
from onestep.models.weights import DIFFUSERS_BASE, Weights, save_network
from onestep.noise import karras_sigmas

if TYPE_CHECKING:
    from onestep.models.diffusers.pipeline import TeacherPipeline

Outputs = Literal["prediction", "features", "both"]
Network = TypeVar("Network", bound=nn.Module)


class _FeaturesReachedError(Exception):
    """Ends a forward pass once the features are computed."""


class DenoiserNetwork(nn.Module, ABC):
    """A network that predicts x0 from ``x0 + sigma * noise``, the package's convention for every family.

    A subclass sets ``image_shape``, ``sigma_min`` and ``sigma_max`` and implements :meth:`denoise`; everything else has
    a default.

    Attributes:
        image_shape: (channels, height, width) of the images, or of the latents of a latent model.
        label_dim: number of classes; 0 for none.
        sigma_min, sigma_max: range of the training noise levels, in data units.
        sigma_data: standard deviation of the data, in data units.
        pipeline: autoencoder and text encoders of its checkpoint; None for none.
    """

    image_shape: tuple[int, int, int]
    label_dim: int = 0
    sigma_min: float
    sigma_max: float
    sigma_data: float = 0.5
    guidance = 1.0  # set by the user of the network, so it is not in the config
    unconditional: Condition = NO_CONDITION  # of one sample; empty for zeros
    guidance_rule: GuidanceRule = PLAIN
    pipeline: "TeacherPipeline | None" = None  # the same object in students and teacher
    ignored_keys: Sequence[str] = ()  # of the conditions of data for a student that takes more than its teacher

    def denoise(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The x0-prediction [B, C, H, W] without guidance, for the arguments of :meth:`forward`."""
        raise NotImplementedError(f"{type(self).__name__} must implement denoise")

    @property
    def denoises_latents(self) -> bool:
        """True if it denoises latents, which an autoencoder decodes."""
        return False

    @property
    def condition_keys(self) -> tuple[str, ...]:
        """Names of the tensors in its condition; by default ``labels`` if it has classes."""
        return ("labels",) if self.label_dim else ()

    @property
    def optional_keys(self) -> tuple[str, ...]:
        """Names of further tensors that its condition may have, and guidance leaves as they are."""
        return ()

    @property
    def requires_condition(self) -> bool:
        """True if every call needs a condition; otherwise an empty condition is the zero vector of classes."""
        return False

    def sampling_mean(self, condition: Condition) -> Tensor | None:
        """The mean of x_sigma [B, C, H, W] at the highest level of its sampler, in data units; None for 0."""
        return None

    @property
    def feature_shapes(self) -> Sequence[tuple[int, int, int]]:
        """(F, h, w) of each level of features for a discriminator, from the highest resolution to the middle."""
        return ()

    @property
    def feature_blocks(self) -> Sequence[nn.Module]:
        """The submodules whose outputs are the features, in the order of :attr:`feature_shapes`, in which they run."""
        return ()

    def read_features(self, output: Any, x_sigma: Tensor) -> Tensor:
        """The features [B, F, h, w], given the output of one of :attr:`feature_blocks`; by default that output."""
        return output

    @property
    def level_embeddings(self) -> Sequence[nn.Module]:
        """The layers with a weight [E, ...] whose outputs [B, E] embed the noise level; empty if they are not known."""
        return ()

    @property
    def supports_guidance(self) -> bool:
        """True if it was also trained without a condition, which guidance needs."""
        return False

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its parameters, which pipelines of diffusers read."""
        return next(self.parameters()).dtype

    @property
    def config(self) -> Mapping[str, Any]:
        """Its class and settings, as plain values."""
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", "image_shape": list(self.image_shape)}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write its weights as safetensors, and its class and config as ``config.json``.

        The package's own classes load from their folder alone. Others load the weights by :meth:`load_weights`.
        """
        config = json.dumps({"_class_name": type(self).__name__, **self.config})
        save_network(self, Path(folder), config, DIFFUSERS_BASE)

    def save_teacher(self, folder: Path) -> None:
        """Write what a distillation of this network as the teacher reads; by default :meth:`save_pretrained`."""
        self.save_pretrained(folder)

    def load_weights(self, folder: str | Path) -> Self:
        """Load the weights that :meth:`save_pretrained` wrote into ``folder``; returns itself, in eval mode.

        Raises:
            ValueError: if the file is absent or does not fit the network.
        """
        weights = Weights.find(Path(folder))
        weights.check(self, type(self).__name__)
        self.load_state_dict(weights.read(None))
        return self.eval()

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """The weight [B] of the squared x0-error at ``sigma`` [B] in its training loss.

        By default EDM's, ``1 / sigma^2 + 1 / sigma_data^2`` (arXiv 2206.00364, table 1).
        """
        return sigma**-2 + self.sigma_data**-2

    def sampling_sigmas(self, steps: int) -> list[float]:
        """The descending noise levels of its own sampler with ``steps`` steps; the last is 0."""
        return [*self.round_sigma(karras_sigmas(steps, self.sigma_min, self.sigma_max)).tolist(), 0.0]

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The training levels nearest to ``sigma`` (any shape); by default ``sigma`` itself."""
        return sigma

    def predict(
        self, x_sigma: Tensor, sigma: Tensor, condition: Condition, /, *, outputs: Outputs, levels: Sequence[int],
        prediction_grad: bool,
    ) -> Any:  # fmt: skip
        """:meth:`forward` without guidance: by default :meth:`denoise`, and the outputs of :attr:`feature_blocks`."""
        if outputs == "prediction":
            return self.denoise(x_sigma, sigma, condition)
        blocks = [self.feature_blocks[level] for level in levels]
        features: dict[nn.Module, Tensor] = {}

        def read(module: nn.Module, inputs: Any, output: Any) -> None:
            features[module] = self.read_features(output, x_sigma)
            if len(features) < len(blocks):
                return
            if outputs == "features":
                raise _FeaturesReachedError
            torch.set_grad_enabled(torch.is_grad_enabled() and prediction_grad)

        hooks = [block.register_forward_hook(read) for block in blocks]
        found: tuple[Tensor, ...] = ()
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled()):
                found = (self.denoise(x_sigma, sigma, condition),)
        except _FeaturesReachedError:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return (*found, *(features[block] for block in blocks))

    def init_noise_sigma(self, sigma: float) -> float:
        """The standard deviation of a generator's initial noise at ``sigma``, in data units."""
        return sigma

    def set_guidance(
        self, guidance: float, unconditional: Condition = NO_CONDITION, rule: GuidanceRule = PLAIN
    ) -> Self:
        """Set classifier-free guidance (arXiv 2207.12598) for all later predictions; returns itself.

        A conditional prediction becomes ``unconditional + guidance * (conditional - unconditional)``.

        Args:
            guidance: the scale; 1 for no guidance, 0 for the unconditional prediction, negative for its opposite.
            unconditional: the condition [1, ...] of the unconditional prediction, such as the embeddings of the empty
                prompt; empty for zeros.
            rule: the levels that are guided, and the norm.

        Raises:
            ValueError: if the network was not trained without a condition, or for a rule without guidance.
        """
        if guidance != 1 and not self.supports_guidance:
            raise ValueError(
                f"guidance={guidance}: this network was trained without classes or without label dropout, or takes an "
                "image as its condition, so it has no unconditional prediction; use guidance=1, or another teacher"
            )
        self.guidance, self.unconditional, self.guidance_rule = guidance, unconditional, rule
        rule.check(guidance, self.network_evaluations)
        return self

    @property
    def network_evaluations(self) -> int:
        """Evaluations of the raw network per prediction: two with guidance, in one batch."""
        return 1 if self.guidance == 1 else 2

    @overload
    def forward(self, x_sigma: Tensor, sigma: Tensor, condition: Condition = NO_CONDITION) -> Tensor: ...
    @overload
    def forward(
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        condition: Condition = NO_CONDITION,
        *,
        outputs: Literal["features", "both"],
        levels: Sequence[int] = (-1,),
        prediction_grad: bool = True,
    ) -> tuple[Tensor, ...]: ...

    def forward(
        self,
        x_sigma: Tensor,
        sigma: Tensor,
        condition: Condition = NO_CONDITION,
        *,
        outputs: Outputs = "prediction",
        levels: Sequence[int] = (-1,),
        prediction_grad: bool = True,
    ) -> Tensor | tuple[Tensor, ...]:
        """The x0-prediction [B, C, H, W], features of several levels [B, F, h, w], or both from one pass.

        With guidance, the features are those of the conditional half of the batch.

        Args:
            x_sigma: noised images [B, C, H, W], in data units.
            sigma: noise levels [B], in data units.
            condition: tensors [B, ...] with the names in :attr:`condition_keys`, or none of these; and any of
                :attr:`optional_keys`.
            outputs: "prediction", "features" (the pass ends there) or "both".
            levels: ascending levels of the features, indices of :attr:`feature_shapes`; -1 is the middle.
            prediction_grad: False computes the layers after the features without a graph.

        Returns:
            The prediction, the tuple of the features, or the tuple of the prediction and the features.

        Raises:
            ValueError: for other names in ``condition``.
        """
        condition = {name: tensor for name, tensor in condition.items() if name not in self.ignored_keys}
        check_condition(condition, self.condition_keys, self.requires_condition, self.optional_keys)
        options: dict[str, Any] = {"outputs": outputs, "levels": levels, "prediction_grad": prediction_grad}
        if self.network_evaluations == 1 or outputs == "features" or condition.keys().isdisjoint(self.condition_keys):
            return self.predict(x_sigma, sigma, condition, **options)
        result = self.predict(
            torch.cat([x_sigma, x_sigma]),
            torch.cat([sigma, sigma]),
            concatenate_conditions(condition, self.without(condition)),
            **options,
        )
        both, *features = result if outputs == "both" else (result,)
        conditional, unconditional = both.chunk(2)
        prediction = self.guidance_rule(conditional, unconditional, sigma, self.guidance)
        return (prediction, *(one[: len(x_sigma)] for one in features)) if outputs == "both" else prediction

    def without(self, condition: Condition) -> Condition:
        """``condition`` with that of the unconditional prediction in place of its :attr:`condition_keys`."""
        guiding = {name: condition[name] for name in self.condition_keys if name in condition}
        if self.unconditional:
            check_condition(self.unconditional, self.condition_keys, required=True)
            return condition | {name: self.unconditional[name].to(one).expand_as(one) for name, one in guiding.items()}
        if self.requires_condition:
            raise ValueError(
                f"guidance={self.guidance} by {', '.join(self.condition_keys)} needs an unconditional condition, "
                "such as the embeddings of the empty prompt: set_guidance(guidance, unconditional={...})"
            )
        return condition | {name: torch.zeros_like(one) for name, one in guiding.items()}


def copy_trained(network: Network) -> Network:
    """A copy of ``network`` that copies the trained parameters and keeps the same frozen ones."""
    return copy.deepcopy(network, {id(p): p for p in network.parameters() if not p.requires_grad})

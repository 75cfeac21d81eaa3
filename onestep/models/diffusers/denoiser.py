"""A network of diffusers with its noise schedule, as a denoiser in the package's convention."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from onestep.denoiser import NO_CONDITION, Condition, map_condition
from onestep.models.base import DenoiserNetwork
from onestep.models.diffusers.families import diffusers_class, find_family
from onestep.models.diffusers.quantized import dequantized
from onestep.models.diffusers.saving import save_pipeline
from onestep.models.diffusers.schedule import build_scheduler, read_schedule
from onestep.models.guidance import PLAIN, GuidanceRule
from onestep.noise import expand_like


class DiffusersDenoiser(diffusers.ModelMixin, DenoiserNetwork, diffusers.ConfigMixin):
    """A network of diffusers with the noise schedule of its scheduler, see :mod:`onestep.models.diffusers.schedule`.

    For a latent model, the images of the package's convention are its scaled latents. Channels of a learned variance
    are dropped.

    Args:
        network_class: class of the network in diffusers, one of :data:`onestep.models.diffusers.families.FAMILIES`.
        network_config: config of the network.
        scheduler_config: config of its scheduler, with the ``_class_name``.
        size: height and width of its images or latents; None for the network's ``sample_size``.
        lora: arguments of :meth:`add_lora`; None for no LoRA.
        latent: True if it denoises the latents of an autoencoder.

    Raises:
        ValueError: for a network or a scheduler that is not supported.
    """

    config = diffusers.ConfigMixin.config
    register_to_config: Any  # of ConfigMixin
    enable_gradient_checkpointing: Any  # of ModelMixin
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        network_class: str,
        network_config: dict[str, Any],
        scheduler_config: dict[str, Any],
        size: int | None = None,
        lora: dict[str, Any] | None = None,
        latent: bool = False,
    ) -> None:
        super().__init__()
        self.family = find_family(network_class)
        self.network: Any = diffusers_class(network_class).from_config(dict(network_config))
        config = self.network.config
        self.family.check(config)
        with torch.device("cpu"):  # has values also where the network is built without memory
            self.schedule = read_schedule(scheduler_config)
        self.sigma_min, self.sigma_max = self.schedule.sigma_min, self.schedule.sigma_max
        self.image_shape = self.family.image_shape(config, size)
        self.family.check_size(config, self.image_shape)
        self.label_dim = self.family.label_dim(config)
        if lora is not None:
            self.add_lora(**lora)

    @classmethod
    def wrap(cls, network: Any, scheduler: Any, size: int | None = None) -> Self:
        """The denoiser of an existing ``network`` (not copied) with a ``scheduler`` of diffusers."""
        scheduler_config = {"_class_name": type(scheduler).__name__, **plain_config(scheduler.config)}
        with init_empty_weights():
            denoiser = cls(type(network).__name__, plain_config(network.config), scheduler_config, size)
        denoiser.network = network
        return denoiser

    def add_lora(self, rank: int, alpha: float, targets: list[str]) -> None:
        """Freeze the network and add a trainable low-rank change, initially zero, to its layers (arXiv 2106.09685).

        Args:
            rank, alpha: rank of the change, and its scale ``alpha / rank``.
            targets: names of the layers, or their suffixes.

        Raises:
            ValueError: if no layer has such a name, or for numbers out of range.
        """
        if not (
            rank > 0
            and 0 < alpha < math.inf
            and isinstance(targets, list)
            and targets
            and all(isinstance(name, str) for name in targets)
        ):
            raise ValueError(f"lora: rank={rank}, alpha={alpha}, targets={targets}: expected positive numbers, names")
        from peft import LoraConfig, inject_adapter_in_model

        options = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")
        try:
            inject_adapter_in_model(options, self.network.requires_grad_(False))
        except ValueError as error:
            raise ValueError(f"lora.targets={targets}: {error}") from error
        for parameter in self.network.parameters():
            if parameter.requires_grad:  # half precision would round small updates to zero
                parameter.data = parameter.data.float()
        self.register_to_config(lora={"rank": rank, "alpha": alpha, "targets": targets})

    @property
    def condition_keys(self) -> tuple[str, ...]:
        """Names of the tensors in its condition: ``labels``, or the embeddings of prompts."""
        return self.family.condition_keys(self.network.config)

    @property
    def requires_condition(self) -> bool:
        """True for text: its unconditional prediction is that of the empty prompt."""
        return self.family.requires_condition(self.network.config)

    @property
    def denoises_latents(self) -> bool:
        """True if it denoises the latents of an autoencoder."""
        return bool(self.config["latent"])

    @property
    def feature_shapes(self) -> Sequence[tuple[int, int, int]]:
        """The shape of the features in the network's middle."""
        shape = self.family.feature_shape(self.network, self.image_shape)
        return () if shape is None else (shape,)

    @property
    def supports_guidance(self) -> bool:
        """True if it has an unconditional prediction, or guidance is an input of the network."""
        return self.family.supports_guidance(self.network.config)

    @property
    def network_evaluations(self) -> int:
        """Evaluations of the raw network per prediction: one if guidance is an input of the network."""
        return 1 if self.family.embeds_guidance(self.network.config) else super().network_evaluations

    def set_guidance(
        self, guidance: float, unconditional: Condition = NO_CONDITION, rule: GuidanceRule = PLAIN
    ) -> Self:
        """See the base class; for text the default is :attr:`pipeline`'s empty prompt."""
        super().set_guidance(guidance, unconditional, rule)
        if not self.unconditional and self.pipeline and self.requires_condition and self.network_evaluations > 1:
            self.unconditional = self.pipeline.unconditional()
        self.unconditional = map_condition(lambda tensor: tensor.to(self.device), self.unconditional)
        return self

    def init_noise_sigma(self, sigma: float) -> float:
        """The standard deviation with which diffusers' pipelines start at ``sigma``."""
        return self.schedule.init_noise_sigma(sigma)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """See :class:`diffusers.ModelMixin`; layers of 8 or 4 bits are written dequantised, in their first dtype."""
        super(DiffusersDenoiser, dequantized(self)).save_pretrained(folder, **options)

    def save_teacher(self, folder: Path) -> None:
        """Write its pipeline with this network; without one, the network as :meth:`save_pretrained`."""
        if self.pipeline is None:
            self.save_pretrained(folder)
        else:
            scheduler = build_scheduler(self.config["scheduler_config"])
            save_pipeline(self.pipeline.folder, folder, self.network, scheduler, self.pipeline.variant)

    def denoise(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        c_in, c_skip, c_out = (expand_like(scale, x_sigma) for scale in self.schedule.scalings(sigma))
        x = (c_in * x_sigma).to(self.network.dtype)
        # Half precision would round sizes of thousands of pixels.
        exact = self.family.exact
        condition = {name: value if name in exact else value.to(x.dtype) for name, value in condition.items()}
        raw = self.family.call(self.network, x, self.schedule.timestep(sigma), condition, self.guidance)
        return c_skip * x_sigma + c_out * raw[:, : x.shape[1]].to(x_sigma.dtype)

    @property
    def feature_blocks(self) -> Sequence[nn.Module]:
        """The block in the network's middle."""
        return (self.family.feature_block(self.network),)

    def read_features(self, output: Any, x_sigma: Tensor) -> Tensor:
        # Attention returns channels-last tensors: the backward pass of torch 2.13's group norm crashes on the CPU for
        # such an input without gradient.
        return self.family.features(self.network, output, x_sigma).to(x_sigma.dtype).contiguous()

    @property
    def level_embeddings(self) -> Sequence[nn.Module]:
        """The last layers of the network's embeddings of the timestep."""
        return self.family.level_embeddings(self.network)

    def sampling_sigmas(self, steps: int) -> list[float]:
        """The noise levels of diffusers' Euler scheduler with ``steps`` steps, as in the family's pipeline."""
        _, height, width = self.image_shape
        # The schedules of Flux and SD3 may depend on the number of tokens, one per two by two latent pixels.
        shift = self.family.flow_shift(self.image_shape, steps)
        return self.schedule.sampling_sigmas(steps, height * width // 4, self.family.spaces_steps_equally, shift)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """The weight [B] that converts the squared x0-error to that of the network's output, such as epsilon."""
        return self.schedule.scalings(sigma).c_out ** -2


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without diffusers' private entries, such as the path of its file."""
    return {name: value for name, value in config.items() if not name.startswith("_")}

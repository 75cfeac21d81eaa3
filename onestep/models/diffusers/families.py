"""Calls and features of each supported class of diffusers networks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onestep.denoiser import Condition

_FLUX_DEFAULT_SIZE = 128  # FluxPipeline's default; Flux's config has no size


class Family(ABC):
    """One class of diffusers networks.

    In all methods ``network`` has that class and ``config`` is its config. Features are those for a discriminator.
    """

    spaces_steps_equally = False  # True if its pipeline spaces the steps of flow matching equally in t

    def check(self, config: Mapping[str, Any]) -> None:
        """Check that the network is a denoiser of its family.

        Raises:
            ValueError: for other inputs or outputs.
        """
        channels, out_channels = config["in_channels"], config["out_channels"]
        if out_channels not in (None, channels, 2 * channels):
            raise ValueError(
                f"this network maps {channels} channels to {out_channels}: expected {channels}, or twice as many for a "
                "learned variance (networks of inpainting, editing or upscaling are not supported)"
            )

    def image_shape(self, config: Mapping[str, Any], size: int | None) -> tuple[int, int, int]:
        """(channels, height, width) of its images or latents of side ``size``; None for the default side."""
        size = size if size is not None else config["sample_size"]
        if size is None:
            raise ValueError("this network's config has no sample_size: set teacher.size=..., its height and width")
        height, width = (size, size) if isinstance(size, int) else size
        return config["in_channels"], height, width

    def side_divisor(self, config: Mapping[str, Any]) -> int:
        """The number that must divide the height and width of its images or latents."""
        return 1

    def check_size(self, config: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
        """Check that the network can halve or cut up images or latents of ``image_shape``.

        Raises:
            ValueError: with the number that must divide their sides.
        """
        divisor, sides = self.side_divisor(config), image_shape[1:]
        if any(side < 1 or side % divisor for side in sides):
            near = max(1, round(sides[0] / divisor)) * divisor
            raise ValueError(
                f"this network takes sides that are multiples of {divisor}, and not {sides[0]}x{sides[1]}: set "
                f"teacher.size={near}, and for images data.resolution={near}"
            )

    def label_dim(self, config: Mapping[str, Any]) -> int:
        """The number of classes; 0 for none."""
        return 0

    def condition_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the tensors in the network's condition; by default the labels, if it has classes."""
        return ("labels",) if self.label_dim(config) else ()

    def requires_condition(self, config: Mapping[str, Any]) -> bool:
        """True if every call needs its condition."""
        return bool(self.condition_keys(config))

    def supports_guidance(self, config: Mapping[str, Any]) -> bool:
        """True if it has an unconditional prediction."""
        return True

    def embeds_guidance(self, config: Mapping[str, Any]) -> bool:
        """True if guidance is an input, which saves the second evaluation."""
        return False

    @abstractmethod
    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        """The network's output [B, C or 2 C, H, W] for its input ``x`` [B, C, H, W] at ``timestep`` [B]."""

    @abstractmethod
    def feature_block(self, network: Any) -> nn.Module:
        """The block whose output is the features."""

    @abstractmethod
    def feature_shape(self, network: Any, image_shape: tuple[int, int, int]) -> tuple[int, int, int] | None:
        """(F, h, w) of the features for images or latents of ``image_shape``; None for no features."""

    @abstractmethod
    def features(self, network: Any, output: Any, x: Tensor) -> Tensor:
        """The features [B, F, h, w], given the block's output."""


class _UNet(Family):
    """A U-Net, whose features are the output of the middle block."""

    def feature_block(self, network: Any) -> nn.Module:
        return network.mid_block

    def feature_shape(self, network: Any, image_shape: tuple[int, int, int]) -> tuple[int, int, int] | None:
        if network.mid_block is None:
            return None
        halvings = len(network.config["block_out_channels"]) - 1
        sides = [-(-side // 2**halvings) for side in image_shape[1:]]  # each level but the last halves it, rounded up
        return network.config["block_out_channels"][-1], *sides

    def features(self, network: Any, output: Any, x: Tensor) -> Tensor:
        return output


class _Transformer(Family):
    """A transformer, whose features are the image tokens after the first half of the blocks."""

    def feature_block(self, network: Any) -> nn.Module:
        return network.transformer_blocks[max(0, len(network.transformer_blocks) // 2 - 1)]

    def feature_shape(self, network: Any, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        patch = self._patch_size(network)
        return network.inner_dim, image_shape[1] // patch, image_shape[2] // patch

    def features(self, network: Any, output: Any, x: Tensor) -> Tensor:
        tokens = output[1] if isinstance(output, tuple) else output  # (text, image)
        height = x.shape[2] // self._patch_size(network)
        return tokens.transpose(1, 2).unflatten(2, (height, -1))

    def side_divisor(self, config: Mapping[str, Any]) -> int:
        return config["patch_size"]

    def _patch_size(self, network: Any) -> int:
        return network.config["patch_size"]


class UNet(_UNet):
    """``UNet2DModel``, unconditional or class-conditional."""

    def check(self, config: Mapping[str, Any]) -> None:
        super().check(config)
        if config["class_embed_type"] is not None or config["time_embedding_type"] == "fourier":
            raise ValueError(
                f"a UNet2DModel of class_embed_type={config['class_embed_type']!r} and "
                f"time_embedding_type={config['time_embedding_type']!r} is not supported: expected None (with "
                "num_class_embeds for classes) and 'positional'"
            )

    def side_divisor(self, config: Mapping[str, Any]) -> int:
        return 2 ** (len(config["block_out_channels"]) - 1)  # each level but the last halves it

    def label_dim(self, config: Mapping[str, Any]) -> int:
        return config["num_class_embeds"] or 0

    def supports_guidance(self, config: Mapping[str, Any]) -> bool:
        return False

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        return network(x, timestep, class_labels=condition["labels"].argmax(1) if condition else None).sample


class DiT(_Transformer):
    """``DiTTransformer2DModel``; the last row of its class embedding is for no class."""

    def label_dim(self, config: Mapping[str, Any]) -> int:
        return config["num_embeds_ada_norm"]

    def requires_condition(self, config: Mapping[str, Any]) -> bool:
        return False

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        classes = self.label_dim(network.config)
        labels = torch.full(x.shape[:1], classes, device=x.device)
        if condition:
            labels = torch.where(condition["labels"].any(1), condition["labels"].argmax(1), labels)
        return network(x, timestep=timestep, class_labels=labels).sample


class TextUNet(_UNet):
    """``UNet2DConditionModel`` of Stable Diffusion 1.5, 2.x and SDXL; SDXL's micro-conditioning has further keys."""

    def check(self, config: Mapping[str, Any]) -> None:
        super().check(config)
        if config["time_cond_proj_dim"] is not None:
            raise ValueError(
                f"a UNet2DConditionModel with time_cond_proj_dim={config['time_cond_proj_dim']} is a student already, "
                "as of latent consistency: it maps noise to images for a guidance, and has no score to match; give the "
                "model that it was distilled from"
            )
        others = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
        if config["addition_embed_type"] not in (None, "text_time") or any(config[key] is not None for key in others):
            found = {key: config[key] for key in ("addition_embed_type", *others)}
            raise ValueError(
                f"a UNet2DConditionModel with {found} is not supported: expected that of Stable Diffusion or SDXL"
            )

    def condition_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        added = ("text_embeds", "time_ids") if config["addition_embed_type"] == "text_time" else ()
        return ("encoder_hidden_states", *added)

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        text, *added = self.condition_keys(network.config)
        micro_conditioning = {key: condition[key] for key in added}
        return network(x, timestep, condition[text], added_cond_kwargs=micro_conditioning).sample


class SD3(_Transformer):
    """``SD3Transformer2DModel``."""

    def check_size(self, config: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
        super().check_size(config, image_shape)
        longest = config["pos_embed_max_size"] * config["patch_size"]
        if max(image_shape[1:]) > longest:
            raise ValueError(f"this network takes sides up to {longest}, not {image_shape[1:]}: set teacher.size=...")

    def condition_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        return ("encoder_hidden_states", "pooled_projections")

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        return network(x, timestep=timestep, **condition).sample


class Flux(_Transformer):
    """``FluxTransformer2DModel``: a token has two by two latent pixels, and gets its position.

    The features are the image tokens after the blocks with separate text and image streams.
    """

    spaces_steps_equally = True

    def condition_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        return ("encoder_hidden_states", "pooled_projections")

    def image_shape(self, config: Mapping[str, Any], size: int | None) -> tuple[int, int, int]:
        size = _FLUX_DEFAULT_SIZE if size is None else size
        return config["in_channels"] // 4, size, size

    def side_divisor(self, config: Mapping[str, Any]) -> int:
        return 2  # a token has two by two latent pixels

    def embeds_guidance(self, config: Mapping[str, Any]) -> bool:
        return bool(config["guidance_embeds"])

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        height, width = x.shape[2] // 2, x.shape[3] // 2
        axes = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        rows, columns = torch.meshgrid(*axes, indexing="ij")
        positions = torch.stack([torch.zeros_like(rows), rows, columns], 2).flatten(0, 1)
        text = condition["encoder_hidden_states"]
        tokens = network(
            x.unflatten(3, (width, 2)).unflatten(2, (height, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2),
            timestep=timestep / 1000,  # the network multiplies it by 1000
            guidance=x.new_full(x.shape[:1], guidance) if self.embeds_guidance(network.config) else None,
            img_ids=positions.to(text),
            txt_ids=text.new_zeros(text.shape[1], 3),
            **condition,
        ).sample
        return tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (height, width)).permute(0, 3, 1, 4, 2, 5).flatten(
            4, 5
        ).flatten(2, 3)  # fmt: skip

    def feature_block(self, network: Any) -> nn.Module:
        return network.transformer_blocks[-1]

    def _patch_size(self, network: Any) -> int:
        return 2


FAMILIES: dict[str, Family] = {
    "UNet2DModel": UNet(),
    "DiTTransformer2DModel": DiT(),
    "UNet2DConditionModel": TextUNet(),
    "SD3Transformer2DModel": SD3(),
    "FluxTransformer2DModel": Flux(),
}


def find_family(network_class: str) -> Family:
    """The family of the networks of diffusers' ``network_class``.

    Raises:
        ValueError: for a class that is not supported.
    """
    if network_class not in FAMILIES:
        raise ValueError(
            f"network_class={network_class!r} is not supported: choose one of {', '.join(FAMILIES)}, or see "
            "CONTRIBUTING.md, 'A new family of teachers', to add it"
        )
    return FAMILIES[network_class]

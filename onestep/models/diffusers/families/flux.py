"""FLUX.1."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.models.diffusers.families.base import TransformerFamily, pack, unpack

_DEFAULT_SIZE = 128  # FluxPipeline's default; the config has no size


def _encode(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, pooled, _ = pipeline.encode_prompt(prompts, None, device)
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


class Flux(TransformerFamily):
    """``FluxTransformer2DModel``: a token has two by two latent pixels, and gets its position.

    The features are the image tokens after the blocks with separate text and image streams.
    """

    pipelines: ClassVar = {"FluxPipeline": _encode}
    text_encoders = ("CLIPTextModel", "T5EncoderModel")
    spaces_steps_equally = True

    def condition_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        return ("encoder_hidden_states", "pooled_projections")

    def image_shape(self, config: Mapping[str, Any], size: int | None) -> tuple[int, int, int]:
        size = _DEFAULT_SIZE if size is None else size
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
            pack(x),
            timestep=timestep / 1000,  # the network multiplies it by 1000
            guidance=x.new_full(x.shape[:1], guidance) if self.embeds_guidance(network.config) else None,
            img_ids=positions.to(text),
            txt_ids=text.new_zeros(text.shape[1], 3),
            **condition,
        ).sample
        return unpack(tokens, height)

    def feature_block(self, network: Any) -> nn.Module:
        return network.transformer_blocks[-1]

    def patch_size(self, network: Any) -> int:
        return 2

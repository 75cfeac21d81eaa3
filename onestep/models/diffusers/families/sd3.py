"""Stable Diffusion 3 and 3.5."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from onestep.denoiser import Condition
from onestep.models.diffusers.families.base import TransformerFamily


def _encode(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, device, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


class SD3(TransformerFamily):
    """``SD3Transformer2DModel``."""

    pipelines: ClassVar = {"StableDiffusion3Pipeline": _encode}
    text_encoders = ("CLIPTextModelWithProjection", "T5EncoderModel")

    def check_size(self, config: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
        super().check_size(config, image_shape)
        longest = config["pos_embed_max_size"] * config["patch_size"]
        if max(image_shape[1:]) > longest:
            raise ValueError(f"this network takes sides up to {longest}, not {image_shape[1:]}: set teacher.size=...")

    def condition_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        return ("encoder_hidden_states", "pooled_projections")

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        return network(x, timestep=timestep, **condition).sample

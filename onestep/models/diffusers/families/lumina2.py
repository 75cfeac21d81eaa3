"""Lumina-Image 2.0."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.models.diffusers.families.base import TransformerFamily, refuse_graph


def _encode(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    """Behind the pipeline's system prompt."""
    embeds, mask, *_ = pipeline.encode_prompt(prompts, False, device=device)
    return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


def _encode_empty(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    *_, embeds, mask = pipeline.encode_prompt(prompts, negative_prompt=prompts, device=device)
    return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


class Lumina2(TransformerFamily):
    """``Lumina2Transformer2DModel``: its time is 1 for the image, and its output points to the image.

    The features are the image tokens before they meet the prompt's: behind that their place depends on its length.
    """

    pipelines: ClassVar = {"Lumina2Pipeline": _encode}
    negatives: ClassVar = {"Lumina2Pipeline": _encode_empty}
    text_encoders = ("Gemma2Model",)
    spaces_steps_equally = True

    def condition_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        return ("encoder_hidden_states", "encoder_attention_mask")

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        refuse_graph(network)
        text, mask = condition["encoder_hidden_states"], condition["encoder_attention_mask"].bool()
        return -network(x, 1 - timestep / 1000, text, mask).sample

    def feature_block(self, network: Any) -> nn.Module:
        return network.noise_refiner[-1]

    def width(self, network: Any) -> int:
        return network.config["hidden_size"]

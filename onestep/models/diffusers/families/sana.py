"""Sana and Sana 1.5."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from onestep.denoiser import Condition
from onestep.models.diffusers.families.base import TransformerFamily


def _encode(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    """Behind the instruction that the pipeline's call prepends."""
    instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
    return _encode_behind(instruction, pipeline, prompts, device)


def _encode_empty(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    return _encode_behind(None, pipeline, prompts, device)


def _encode_behind(
    instruction: list[str] | None, pipeline: Any, prompts: list[str], device: torch.device
) -> dict[str, Tensor]:
    embeds, mask, *_ = pipeline.encode_prompt(prompts, False, device=device, complex_human_instruction=instruction)
    return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


class Sana(TransformerFamily):
    """``SanaTransformer2DModel``."""

    pipelines: ClassVar = {"SanaPipeline": _encode}
    negatives: ClassVar = {"SanaPipeline": _encode_empty}
    text_encoders = ("Gemma2Model", "Gemma2PreTrainedModel")
    call_options: ClassVar = {"guidance_scale": 1.0, "use_resolution_binning": False}

    def check(self, config: Mapping[str, Any]) -> None:
        super().check(config)
        if config["guidance_embeds"]:
            raise ValueError(
                "a SanaTransformer2DModel with guidance_embeds=True is Sana Sprint, a student already: give the Sana "
                "model that it was distilled from"
            )

    def condition_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        return ("encoder_hidden_states", "encoder_attention_mask")

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        return network(x, timestep=timestep * network.config["timestep_scale"], **condition).sample

    def width(self, network: Any) -> int:
        return network.config["num_attention_heads"] * network.config["attention_head_dim"]

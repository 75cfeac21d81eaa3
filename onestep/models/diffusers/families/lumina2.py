"""Lumina-Image 2.0."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.models.diffusers.families.base import TransformerFamily, refuse_graph

#: Names of the original code, by those of diffusers; those of attention's inputs are one layer there.
_ORIGINAL = {
    r"\.attn\.to_out\.0$": ".attention.out", r"\.feed_forward\.linear_([123])$": r".feed_forward.w\1",
    r"\.norm1\.linear$": ".adaLN_modulation.1",
}  # fmt: skip
_INPUT = re.compile(r"(.*)\.attn\.to_[qkv]$")


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

    def comfyui_lora(self, network: Any, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The original code's names, whose ``qkv`` is a block-diagonal LoRA of the three layers of diffusers."""
        found: dict[str, Tensor] = {}
        for layer in dict.fromkeys(name.rpartition(".lora_")[0] for name in layers):
            parts = [layer]
            if inputs := _INPUT.match(layer):
                layer, parts = f"{inputs[1]}.attention.qkv", [f"{inputs[1]}.attn.to_{name}" for name in "qkv"]
            for pattern, name in _ORIGINAL.items():
                layer = re.sub(pattern, name, layer)
            down = torch.cat([layers[name] for part in parts if (name := f"{part}.lora_A.weight") in layers])
            up = torch.block_diag(*(
                layers.get(f"{part}.lora_B.weight", down.new_zeros(network.get_submodule(part).out_features, 0))
                for part in parts
            ))  # fmt: skip
            found |= {f"diffusion_model.{layer}.lora_A.weight": down, f"diffusion_model.{layer}.lora_B.weight": up}
        return found

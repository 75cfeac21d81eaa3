"""FLUX.2: klein."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from onestep.denoiser import Condition
from onestep.models.diffusers.families.base import QWEN3_CHAT, TransformerFamily

_DEFAULT_SIZE = 64  # of 1,024 pixels, Flux2KleinPipeline's default; the config has no size


def _encode_klein(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _ = pipeline.encode_prompt(prompts, device)
    return {"encoder_hidden_states": embeds}


class Flux2(TransformerFamily):
    """``Flux2Transformer2DModel``: a token has one latent pixel, which is two by two of the autoencoder's.

    The features are the image tokens after the blocks with separate text and image streams.
    """

    since = (0, 42)
    pipelines: ClassVar = {"Flux2KleinPipeline": _encode_klein}
    text_encoders = ("Qwen3ForCausalLM",)
    chat_template = QWEN3_CHAT
    spaces_steps_equally = True

    def image_shape(self, config: Mapping[str, Any], size: int | None) -> tuple[int, int, int]:
        size = _DEFAULT_SIZE if size is None else size
        return config["in_channels"], size, size

    def flow_shift(self, image_shape: tuple[int, int, int], steps: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return compute_empirical_mu(image_shape[1] * image_shape[2], steps)

    def condition_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        return ("encoder_hidden_states",)

    def embeds_guidance(self, config: Mapping[str, Any]) -> bool:
        return bool(config["guidance_embeds"])

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        text = condition["encoder_hidden_states"]
        tokens = network(
            x.flatten(2).transpose(1, 2),
            timestep=timestep / 1000,  # the network multiplies it by 1000
            guidance=x.new_full(x.shape[:1], guidance) if self.embeds_guidance(network.config) else None,
            encoder_hidden_states=text,
            img_ids=_positions(x.shape[2], x.shape[3], 1, x.device),
            txt_ids=_positions(1, 1, text.shape[1], x.device),
        ).sample
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])

    def feature_block(self, network: Any) -> nn.Module:
        return network.transformer_blocks[-1]


def _positions(height: int, width: int, words: int, device: torch.device) -> Tensor:
    """Time, row, column and word of each token [N, 4]."""
    return torch.cartesian_prod(*(torch.arange(count, device=device) for count in (1, height, width, words)))

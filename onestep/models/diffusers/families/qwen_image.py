"""Qwen-Image."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.denoiser import Condition
from onestep.models.diffusers.families.base import TransformerFamily, pack, unpack

_DEFAULT_SIZE = 128  # QwenImagePipeline's default; the config has no size
_LENGTH = 512  # of prompts, that of the pipeline's call


def _encode(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, mask = pipeline.encode_prompt(prompts, device, max_sequence_length=_LENGTH)
    mask = torch.ones(embeds.shape[:2], device=device) if mask is None else mask
    rest = _LENGTH - embeds.shape[1]
    return {
        "encoder_hidden_states": F.pad(embeds, (0, 0, 0, rest)),
        "encoder_hidden_states_mask": F.pad(mask, (0, rest)),
    }


class QwenImage(TransformerFamily):
    """``QwenImageTransformer2DModel``: a token has two by two latent pixels.

    Its pipeline also scales a guided prediction to the norm of the prompt's own; here guidance is plain.
    """

    since = (0, 42)
    pipelines: ClassVar = {"QwenImagePipeline": _encode}
    text_encoders = ("Qwen2_5_VLForConditionalGeneration",)
    call_options: ClassVar = {"true_cfg_scale": 1.0}
    spaces_steps_equally = True

    def check(self, config: Mapping[str, Any]) -> None:
        others = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope", "guidance_embeds")
        found = [name for name in others if config.get(name)]
        if found or config["in_channels"] != 4 * config["out_channels"]:
            raise ValueError(
                f"a QwenImageTransformer2DModel of {config['in_channels']} to {config['out_channels']} channels"
                f"{''.join(f', with {name}' for name in found)}: expected that of Qwen-Image, with four times as many "
                "in as out and none of these (networks of editing, inpainting or layers are not supported)"
            )

    def image_shape(self, config: Mapping[str, Any], size: int | None) -> tuple[int, int, int]:
        size = _DEFAULT_SIZE if size is None else size
        return config["in_channels"] // 4, size, size

    def side_divisor(self, config: Mapping[str, Any]) -> int:
        return 2

    def condition_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        return ("encoder_hidden_states", "encoder_hidden_states_mask")

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        height, width = x.shape[2] // 2, x.shape[3] // 2
        mask = condition["encoder_hidden_states_mask"].bool()
        longest = int(mask.sum(1).max())
        tokens = network(
            pack(x),
            timestep=timestep / 1000,  # the network multiplies it by 1000
            encoder_hidden_states=condition["encoder_hidden_states"][:, :longest],
            encoder_hidden_states_mask=mask[:, :longest],
            img_shapes=[[(1, height, width)]] * len(x),
        ).sample
        return unpack(tokens, height)

    def patch_size(self, network: Any) -> int:
        return 2

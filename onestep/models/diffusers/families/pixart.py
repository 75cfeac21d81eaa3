"""PixArt-alpha and PixArt-Sigma."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from onestep.denoiser import Condition
from onestep.models.diffusers.families.base import TransformerFamily

_SIZES = ("resolution", "aspect_ratio")


def _encode(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, mask, *_ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, device=device)
    return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


class PixArt(TransformerFamily):
    """``PixArtTransformer2DModel``; alpha of 1,024 pixels also takes the images' sizes."""

    pipelines: ClassVar = {"PixArtAlphaPipeline": _encode, "PixArtSigmaPipeline": _encode}
    text_encoders = ("T5EncoderModel",)
    exact = _SIZES
    call_options: ClassVar = {"guidance_scale": 1.0, "use_resolution_binning": False}

    def condition_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        sizes = _SIZES if config["use_additional_conditions"] else ()
        return ("encoder_hidden_states", "encoder_attention_mask", *sizes)

    def size_condition(self, config: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, Tensor]:
        if not config["use_additional_conditions"]:
            return {}
        height, width = image_size
        return {"resolution": torch.tensor([[height, width]]).float(), "aspect_ratio": torch.tensor([[height / width]])}

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        sizes = {name: condition.get(name) for name in _SIZES}
        text = {name: value for name, value in condition.items() if name not in _SIZES}
        return network(x, timestep=timestep, added_cond_kwargs=sizes, **text).sample

"""The U-Nets of diffusers: of images, of classes, and of Stable Diffusion and SDXL."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from onestep.denoiser import Condition
from onestep.models.diffusers.families.base import UNetFamily


def _encode_sd(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _ = pipeline.encode_prompt(prompts, device, 1, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": embeds}


def _encode_sdxl(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipeline.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": embeds, "text_embeds": pooled}


class UNet(UNetFamily):
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


class TextUNet(UNetFamily):
    """``UNet2DConditionModel`` of Stable Diffusion 1.5, 2.x and SDXL; SDXL's micro-conditioning has further keys."""

    pipelines: ClassVar = {"StableDiffusionPipeline": _encode_sd, "StableDiffusionXLPipeline": _encode_sdxl}
    text_encoders = ("CLIPTextModel", "CLIPTextModelWithProjection")
    exact = ("time_ids",)

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

    def size_condition(self, config: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, Tensor]:
        if config["addition_embed_type"] is None:
            return {}
        return {
            "time_ids": torch.tensor([[*image_size, 0, 0, *image_size]], dtype=torch.float32)
        }  # original, crop, target

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        text, *added = self.condition_keys(network.config)
        micro_conditioning = {key: condition[key] for key in added}
        return network(x, timestep, condition[text], added_cond_kwargs=micro_conditioning).sample

    def comfyui_lora(self, network: Any, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Kohya's names: of diffusers' own ComfyUI reads those of layers other than attention alone."""
        from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

        return convert_state_dict_to_kohya({f"unet.{name}": value for name, value in layers.items()})

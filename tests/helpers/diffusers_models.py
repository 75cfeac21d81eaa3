"""Tiny networks of diffusers with random weights, one of each supported family, and what they take."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from onestep.denoiser import Condition
from onestep.models.diffusers.denoiser import DiffusersDenoiser

UNET_BLOCKS = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4}


def unet(**options: Any) -> Any:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    channels = options.pop("in_channels", 3), options.pop("out_channels", 3)
    return diffusers.UNet2DModel(8, *channels, **UNET_BLOCKS, **blocks, **options)


def dit(out_channels: int = 8) -> Any:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=out_channels, num_layers=2,
        sample_size=8, norm_num_groups=4, num_embeds_ada_norm=10,
    )  # fmt: skip


def text_unet(**options: Any) -> Any:
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
              "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
    return diffusers.UNet2DConditionModel(8, 4, 4, cross_attention_dim=12, **UNET_BLOCKS, **blocks, **options)


def sdxl() -> Any:
    return text_unet(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 + 6 * 4
    )


def sd3() -> Any:
    return diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=6, out_channels=4,
        pos_embed_max_size=16,
    )  # fmt: skip


def flux(guidance_embeds: bool = False) -> Any:
    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=6, guidance_embeds=guidance_embeds, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip


NETWORKS: dict[str, Callable[..., Any]] = {
    "unet": unet,
    "class unet": lambda: unet(num_class_embeds=10),
    "dit": dit,
    "sit": lambda: dit(4),
    "sd": text_unet,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "flux dev": lambda: flux(guidance_embeds=True),
}
FLOWS = ("sit", "sd3", "flux", "flux dev")


def randomize(network: Any) -> Any:
    """Every weight random, those too that are made as zeros, so that nothing is switched off."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any() or (parameter == 1).all():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return network.eval()


def build_network(name: str) -> Any:
    torch.manual_seed(0)
    return randomize(NETWORKS[name]())


def build_denoiser(name: str, scheduler: Any) -> DiffusersDenoiser:
    return DiffusersDenoiser.wrap(build_network(name), scheduler, 8 if name.startswith("flux") else None).eval()


def random_condition(denoiser: DiffusersDenoiser, count: int, seed: int = 0) -> Condition:
    """One-hot labels or embeddings, as the denoiser takes them."""
    random = torch.Generator().manual_seed(seed)
    if denoiser.label_dim:
        labels = torch.randint(denoiser.label_dim, (count,), generator=random)
        return {"labels": torch.eye(denoiser.label_dim)[labels]}
    shapes = {"encoder_hidden_states": (5, 12), "pooled_projections": (6,), "text_embeds": (6,), "time_ids": (6,)}
    return {key: torch.randn(count, *shapes[key], generator=random) for key in denoiser.condition_keys}

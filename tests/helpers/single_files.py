"""Stable Diffusion as a single file, in the names of the original code (CompVis' latent-diffusion)."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
    # One layer each in two blocks, the first with attention.
    "down_blocks.0.resnets.0": "input_blocks.1.0", "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op", "down_blocks.1.resnets.0": "input_blocks.3.0",
    "up_blocks.0.resnets.0": "output_blocks.0.0", "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0", "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0", "up_blocks.1.attentions.1": "output_blocks.3.1",
}  # fmt: skip
_VAE = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut", "down_blocks.0.downsamplers.0": "down.0.downsample",
    "up_blocks.0.upsamplers.0": "up.1.upsample",
    **{f"down_blocks.{i}.resnets.{j}": f"down.{i}.block.{j}" for i in range(2) for j in range(2)},
    **{f"up_blocks.{i}.resnets.{j}": f"up.{1 - i}.block.{j}" for i in range(2) for j in range(3)},
}  # fmt: skip


def save_single_file(pipeline: Path, file: Path) -> None:
    """Write the tiny pipeline of Stable Diffusion in the folder ``pipeline`` as the single ``file``."""
    weights: dict[str, Tensor] = {}
    for name, value in load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors").items():
        old = _renamed(name, _UNET)
        weights[f"model.diffusion_model.{_renamed(old, _RESNET) if 'resnets' in name else old}"] = value
    for name, value in load_file(pipeline / "vae" / "diffusion_pytorch_model.safetensors").items():
        convolution = "attentions" in name and "group_norm" not in name and name.endswith("weight")
        weights[f"first_stage_model.{_renamed(name, _VAE)}"] = value[:, :, None, None] if convolution else value
    for name, value in load_file(pipeline / "text_encoder" / "model.safetensors").items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    weights["alphas_cumprod"] = torch.ones(1000)
    save_file({name: value.contiguous() for name, value in weights.items()}, file)


def _renamed(name: str, names: dict[str, str]) -> str:
    parts = f".{name}."
    for new, old in names.items():
        parts = parts.replace(f".{new}.", f".{old}.")
    return parts.strip(".")

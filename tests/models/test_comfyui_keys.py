"""The LoRA files of exports against the names of layers that ComfyUI reads. ComfyUI itself is not run."""

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor

from onestep.models.diffusers.denoiser import DiffusersDenoiser
from onestep.models.diffusers.export import save_lora
from tests.helpers.family_pipelines import build_family_network

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_UNET = (
    r"lora_unet_(down_blocks_\d|up_blocks_\d|mid_block)_(attentions_\d_(proj_in|proj_out|transformer_blocks_\d_"
    r"(attn[12]_to_(q|k|v|out_0)|ff_net_0_proj|ff_net_2))|resnets_\d_(conv1|conv2|time_emb_proj))"
)
_JOINT = r"transformer\.transformer_blocks\.\d\.(attn\.(to_(q|k|v|out\.0)|add_[qkv]_proj|to_add_out)|"
#: Of each family the layers that ComfyUI reads, and the suffixes of those that a LoRA changes here. From
#: ``model_lora_keys_unet`` in comfy/lora.py and the maps to diffusers in comfy/utils.py, github.com/Comfy-Org/ComfyUI
#: at commits 17358c8f and 09708eae; of Qwen-Image and Lumina 2 also the names of its networks in comfy/ldm. There is
#: no Sana in them.
READ: dict[str, tuple[str, tuple[str, ...]]] = {
    "Stable Diffusion 1.5": (_UNET, (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "conv1", "time_emb_proj")),
    "SDXL": (_UNET, (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_out", "conv2")),
    "SD3": (
        _JOINT + r"ff(_context)?\.net\.(0\.proj|2)|norm1\.linear)",
        (*ATTENTION, *TEXT, "ff.net.2", "norm1.linear"),
    ),
    "FLUX.1": (
        f"{_JOINT}ff(_context)?\\.net\\.(0\\.proj|2))|transformer\\.single_transformer_blocks\\.\\d\\."
        r"(attn\.to_[qkv]|proj_mlp|proj_out|norm\.linear)",
        (*ATTENTION, *TEXT, "ff.net.2", "proj_mlp", "norm.linear"),
    ),
    "FLUX.2 klein": (
        f"{_JOINT}ff(_context)?\\.linear_(in|out))|transformer\\.single_transformer_blocks\\.\\d\\."
        r"attn\.(to_qkv_mlp_proj|to_out)",
        (*ATTENTION, *TEXT, "ff.linear_in", "to_qkv_mlp_proj"),
    ),
    "Lumina 2": (
        r"diffusion_model\.(layers|noise_refiner|context_refiner)\.\d\.(attention\.(qkv|out)|feed_forward\.w[123]|"
        r"adaLN_modulation\.1)",
        (*ATTENTION, "feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3", "norm1.linear"),
    ),
    "Z-Image": (
        r"transformer\.(layers|noise_refiner|context_refiner)\.\d\.(attention\.to_(q|k|v|out\.0)|feed_forward\.w[123]|"
        r"adaLN_modulation\.0)",
        (*ATTENTION, "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    ),
    "Qwen-Image": (
        _JOINT + r"(img|txt)_mlp\.net\.(0\.proj|2)|(img|txt)_mod\.1)",
        (*ATTENTION, *TEXT, "img_mlp.net.0.proj", "txt_mlp.net.2", "img_mod.1"),
    ),
}  # fmt: skip


def student(name: str, targets: tuple[str, ...]) -> DiffusersDenoiser:
    network = build_family_network(name)
    flow = not name.startswith(("Stable", "SDXL"))
    scheduler = (diffusers.FlowMatchEulerDiscreteScheduler if flow else diffusers.DDIMScheduler)()
    denoiser = DiffusersDenoiser.wrap(network, scheduler, 8)
    denoiser.add_lora(2, 6.0, [*targets])
    random = torch.Generator().manual_seed(0)
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=random)
    return denoiser


def written(denoiser: DiffusersDenoiser, folder: Path) -> dict[str, Tensor]:
    """The tensors of the file for ComfyUI, which is diffusers' where there is no other."""
    unet = hasattr(denoiser.network, "mid_block")
    pipeline: Any = diffusers.StableDiffusionPipeline if unet else diffusers.StableDiffusion3Pipeline
    other = save_lora(pipeline, "unet" if unet else "transformer", denoiser, folder)
    assert (folder / "comfyui_lora_weights.safetensors").exists() == other
    assert (folder / "pytorch_lora_weights.safetensors").exists()
    return load_file(folder / ("comfyui_lora_weights.safetensors" if other else "pytorch_lora_weights.safetensors"))


def changes(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """The change of each layer's flattened weight, as ComfyUI computes it: without an alpha the scale is 1."""
    found = {}
    for key, down in file.items():
        for a, b in ((".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")):
            if key.endswith(a):
                layer = key.removesuffix(a)
                scale = file[f"{layer}.alpha"].item() / len(down) if f"{layer}.alpha" in file else 1.0
                found[layer] = scale * file[layer + b].flatten(1) @ down.flatten(1)
    return found


def expected(name: str, denoiser: DiffusersDenoiser) -> dict[str, Tensor]:
    """The changes of a student's layers by the names of ComfyUI."""
    layers = {
        layer: module.get_delta_weight("default").detach().flatten(1)
        for layer, module in denoiser.network.named_modules()
        if isinstance(module, LoraLayer)
    }
    if name in ("Stable Diffusion 1.5", "SDXL"):
        return {f"lora_unet_{layer.replace('.', '_')}": change for layer, change in layers.items()}
    if name != "Lumina 2":
        return {f"transformer.{layer}": change for layer, change in layers.items()}
    found: dict[str, Tensor] = {}
    for layer, change in layers.items():
        block, _, rest = layer.replace(".attn.", ".attention.").partition(".attention.to_")
        if rest and rest != "out.0":
            key = f"{block}.attention.qkv"  # rows of queries, keys and values in this order, as they come here
            found[key] = torch.cat([found[key], change]) if key in found else change
            continue
        renamed = f"{block}.attention.out" if rest else layer.replace("norm1.linear", "adaLN_modulation.1")
        found[renamed.replace(".linear_", ".w")] = change
    return {f"diffusion_model.{layer}": change for layer, change in found.items()}


@pytest.mark.parametrize("name", READ)
def test_every_layer_is_one_that_comfyui_reads(name: str, tmp_path: Path) -> None:
    pattern, targets = READ[name]
    denoiser = student(name, targets)
    file = written(denoiser, tmp_path)
    found = changes(file)
    assert [layer for layer in found if not re.fullmatch(pattern, layer)] == []
    assert len(file) == len(found) * (3 if name in ("Stable Diffusion 1.5", "SDXL") else 2)
    torch.testing.assert_close(found, expected(name, denoiser), rtol=1e-5, atol=1e-5)


def test_lumina_with_a_part_of_its_attention(tmp_path: Path) -> None:
    """ComfyUI has one layer for queries, keys and values: those without a LoRA do not change."""
    denoiser = student("Lumina 2", ("to_k",))
    change = changes(written(denoiser, tmp_path))["diffusion_model.layers.0.attention.qkv"]
    layer = denoiser.network.layers[0].attn
    queries, keys = layer.to_q.out_features, layer.to_k.out_features
    assert change.shape[0] == queries + 2 * keys and not change[:queries].any() and not change[queries + keys :].any()
    torch.testing.assert_close(change[queries : queries + keys], layer.to_k.get_delta_weight("default").detach())

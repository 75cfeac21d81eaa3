"""A tiny text-to-image pipeline of each family, with random weights, as a local folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.helpers.diffusers_models import build_network, randomize
from tests.helpers.tiny_pipelines import build_pipeline, t5_encoder, t5_tokenizer, vae

_HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}
_QWEN: dict[str, Any] = {
    "vocab_size": 30, "hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 6,
}  # fmt: skip
#: The end of Qwen3's own template, with what it does to a single message.
_QWEN3_TEMPLATE = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def _flow(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def _chat_tokenizer() -> Any:
    tokenizer = t5_tokenizer()
    tokenizer.chat_template = _QWEN3_TEMPLATE
    return tokenizer


def _gemma() -> Any:
    return transformers.Gemma2Model(transformers.Gemma2Config(**_QWEN))


def _pixart(size: int, **options: Any) -> dict[str, Any]:
    network = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, in_channels=4, out_channels=8, sample_size=size,
        cross_attention_dim=24, caption_channels=12, norm_num_groups=4, **options,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    return {"transformer": network, "scheduler": scheduler, "vae": vae(), "text_encoder": t5_encoder()}


def _sana() -> dict[str, Any]:
    network = diffusers.SanaTransformer2DModel(
        **_HEADS, in_channels=4, out_channels=4, num_cross_attention_heads=2, cross_attention_head_dim=8,
        cross_attention_dim=16, caption_channels=12, sample_size=8, patch_size=1,
    )  # fmt: skip
    blocks: dict[str, Any] = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("block_out_channels", (4, 4)), ("layers_per_block", (1, 1)),
                            ("qkv_multiscales", ((), ())))
    }  # fmt: skip
    autoencoder = diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.41407, **blocks)
    return {"transformer": network, "scheduler": _flow(shift=3.0), "vae": autoencoder, "text_encoder": _gemma()}


def _lumina2() -> dict[str, Any]:
    network = diffusers.Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 4), axes_lens=(300, 16, 16), cap_feat_dim=12,
    )  # fmt: skip
    autoencoder = vae(0.1159, 0.3611, levels=4)  # its pipeline takes it that a latent has 8 by 8 pixels
    return {"transformer": network, "scheduler": _flow(shift=6.0), "vae": autoencoder, "text_encoder": _gemma()}


def _z_image() -> dict[str, Any]:
    network = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=24, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=12,
        axes_dims=[4, 4, 4], axes_lens=[1024, 32, 32],
    )  # fmt: skip
    encoder = transformers.Qwen3Model(transformers.Qwen3Config(**_QWEN))
    autoencoder = vae(0.1159, 0.3611)
    return {"transformer": network, "scheduler": _flow(shift=3.0), "vae": autoencoder, "text_encoder": encoder}


def _qwen_image() -> dict[str, Any]:
    network = diffusers.QwenImageTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, in_channels=16, out_channels=4,
        joint_attention_dim=12, axes_dims_rope=(4, 4, 4),
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 1.1, 2.0],
    )  # fmt: skip
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 12}
    text = {**_QWEN, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 1]}}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(config)
    scheduler = _flow(use_dynamic_shifting=True, shift_terminal=0.02, base_shift=0.5, max_shift=0.9)
    return {"transformer": network, "scheduler": scheduler, "vae": autoencoder, "text_encoder": encoder}


def _flux2() -> dict[str, Any]:
    network = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=36, timestep_guidance_channels=8, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4), latent_channels=4, norm_num_groups=2, layers_per_block=1,
    )  # fmt: skip
    random = torch.Generator().manual_seed(0)
    autoencoder.bn.running_mean.copy_(torch.randn(16, generator=random))
    autoencoder.bn.running_var.copy_(0.5 + torch.rand(16, generator=random))
    encoder = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**_QWEN, "num_hidden_layers": 28}))
    scheduler = _flow(use_dynamic_shifting=True)
    return {"transformer": network, "scheduler": scheduler, "vae": autoencoder, "text_encoder": encoder}


#: By family the class of its pipeline, its parts, and its tokenizer.
_NEWER: dict[str, tuple[str, Callable[[], dict[str, Any]], Callable[[], Any]]] = {
    "PixArt-alpha": (
        "PixArtAlphaPipeline", lambda: _pixart(128, use_additional_conditions=True, interpolation_scale=1), t5_tokenizer
    ),
    "PixArt-Sigma": ("PixArtSigmaPipeline", lambda: _pixart(8, use_additional_conditions=False), t5_tokenizer),
    "Sana": ("SanaPipeline", _sana, t5_tokenizer),
    "Lumina 2": ("Lumina2Pipeline", _lumina2, t5_tokenizer),
    "Z-Image": ("ZImagePipeline", _z_image, _chat_tokenizer),
    "Qwen-Image": ("QwenImagePipeline", _qwen_image, t5_tokenizer),
    "FLUX.2 klein": ("Flux2KleinPipeline", _flux2, _chat_tokenizer),
}  # fmt: skip
_OLDER = {"Stable Diffusion 1.5": "sd", "SDXL": "sdxl", "SD3": "sd3", "FLUX.1": "flux"}
FAMILIES = (*_OLDER, *_NEWER)


def build_family_network(name: str) -> Any:
    """The network of a family's pipeline."""
    if name in _OLDER:
        return build_network(_OLDER[name])
    torch.manual_seed(0)
    return randomize(_NEWER[name][1]()["transformer"])


def build_family(name: str, folder: Path) -> Path:
    """Write the pipeline of a family into ``folder``.

    Its latents have a side of 8, or 16 for Sana; its images 16, or 32 for Sana and FLUX.2, or 64 for Lumina 2.
    """
    if name in _OLDER:
        return build_pipeline(_OLDER[name], folder)
    kind, build, tokenizer = _NEWER[name]
    torch.manual_seed(0)
    parts = build()
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            randomize(part)
    getattr(diffusers, kind)(**parts, tokenizer=tokenizer()).save_pretrained(folder)
    return folder

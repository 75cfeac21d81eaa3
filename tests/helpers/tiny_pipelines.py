"""Tiny text-to-image pipelines with random weights, written as local folders from configs: nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.helpers.diffusers_models import build_network, randomize

CLIP_LENGTH = 8
SCHEDULERS = {
    "sd": lambda: diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    ),
    "sdxl": lambda: diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    ),
    "sd3": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flux": lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
}


def clip_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer that knows single letters, ends every prompt, and pads to eight tokens."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=CLIP_LENGTH
    )


def clip_encoder(hidden: int, projection: int | None = None) -> Any:
    """A CLIP text encoder of ``hidden`` channels, with a projection if asked."""
    config = transformers.CLIPTextConfig(
        vocab_size=54, hidden_size=hidden, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CLIP_LENGTH, projection_dim=projection or 8, bos_token_id=52, eos_token_id=53,
        pad_token_id=53,
    )  # fmt: skip
    return (transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection)(config)


def t5_tokenizer() -> Any:
    """A T5 tokenizer that knows single letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(ord("a"), ord("z") + 1)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def t5_encoder() -> Any:
    return transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=30, d_model=12, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )


def vae(shift: float | None = None, scale: float = 0.18215, levels: int = 2) -> Any:
    """An autoencoder that halves the sides of images once less than it has ``levels``."""
    return diffusers.AutoencoderKL(
        3, 3, ("DownEncoderBlock2D",) * levels, ("UpDecoderBlock2D",) * levels, (4,) * levels, latent_channels=4,
        norm_num_groups=2, scaling_factor=scale, shift_factor=shift, sample_size=16, use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
    )  # fmt: skip


def build_pipeline(kind: str, folder: Path) -> Path:
    """Write the pipeline of ``kind``, a key of SCHEDULERS, into ``folder``; its images are of 16 x 16 pixels."""
    scratch = folder.with_name(f"{folder.name}_tokenizer")
    torch.manual_seed(0)
    parts: dict[str, Any] = {"tokenizer": clip_tokenizer(scratch), "scheduler": SCHEDULERS[kind]()}
    network = build_network(kind)
    match kind:
        case "sd":
            parts |= {"text_encoder": clip_encoder(12), "vae": vae(), "safety_checker": None, "feature_extractor": None}
            parts["requires_safety_checker"] = False
        case "sdxl":
            parts |= {"text_encoder": clip_encoder(6), "text_encoder_2": clip_encoder(6, 6), "vae": vae(scale=0.13025)}
            parts |= {"tokenizer_2": parts["tokenizer"], "add_watermarker": False}
        case "sd3":
            parts |= {"text_encoder": clip_encoder(6, 3), "text_encoder_2": clip_encoder(6, 3)}
            parts |= {"text_encoder_3": t5_encoder(), "tokenizer_3": t5_tokenizer(), "vae": vae(0.0609, 1.5305)}
            parts["tokenizer_2"] = parts["tokenizer"]
        case "flux":
            parts |= {"text_encoder": clip_encoder(6), "text_encoder_2": t5_encoder(), "tokenizer_2": t5_tokenizer()}
            parts["vae"] = vae(0.1159, 0.3611)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            randomize(part)
    name = {"sd": "StableDiffusion", "sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3", "flux": "Flux"}[kind]
    parts["transformer" if kind in ("sd3", "flux") else "unet"] = network
    getattr(diffusers, f"{name}Pipeline")(**parts).save_pretrained(folder)
    return folder

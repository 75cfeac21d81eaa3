"""Two dual encoders of emoji and their prompts, and the untrained text-to-image pipeline of one of them.

    python -m benchmarks.emoji_encoders EMOJI.parquet OUT

OUT/agreement is a CLIP (Radford et al. 2021, arXiv 2103.00020) for metrics. OUT/pipeline is a Stable Diffusion pipeline
in pixel space: the text encoder of a second CLIP of another seed, a U-Net with random weights, the noise schedule, and
an autoencoder that only shifts and scales the pixels, to mean 0 and standard deviation 1. `onestep pretrain` trains its
U-Net. A pair of a batch is a positive if the prompt belongs to the image, not only if it was drawn for it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm.auto import trange

from onestep.data.prompts import ParquetImages, read_prompts
from onestep.images import decode_image, from_uint8
from onestep.seeding import seeded_rng

LENGTH = 16  # tokens of a prompt, with those of its start and end
VOCABULARY = 2000
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
NAMES = 0.5  # of the drawn prompts; the others are random ones of their image
STEPS, BATCH, RATE = 700, 256, 1e-3
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": LENGTH, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 1, "attention_dropout": 0.1,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8, "attention_dropout": 0.1,
}  # fmt: skip
UNET: dict[str, Any] = {
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "block_out_channels": (32, 64, 96),
    "layers_per_block": 1, "cross_attention_dim": 128, "attention_head_dim": 4, "norm_num_groups": 16,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}  # fmt: skip


class Emoji:
    """The distinct images [N, 3, 32, 32] in [-1, 1], the distinct prompts [M], and which belong together [N, M]."""

    def __init__(self, path: str) -> None:
        prompts, stored = read_prompts(path, "prompt"), ParquetImages(path, "image")
        encoded = [stored[row] for row in range(len(stored))]
        self.prompts = list(dict.fromkeys(prompts))
        pixels = {image: number for number, image in enumerate(dict.fromkeys(encoded))}
        arrays = [torch.from_numpy(decode_image(image, (32, 32), channels=3)) for image in pixels]
        self.images = from_uint8(torch.stack(arrays))
        places = {prompt: number for number, prompt in enumerate(self.prompts)}
        self.pairs = torch.zeros(len(pixels), len(places), dtype=torch.bool)
        for prompt, image in zip(prompts, encoded, strict=True):
            self.pairs[pixels[image], places[prompt]] = True

    def draw(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """A prompt [B] for each image of ``rows``: the rarest, mostly its name, as likely as all others together."""
        rarity = self.pairs[rows] / self.pairs.sum(0).double()
        rarest = F.one_hot(rarity.argmax(1), len(self.prompts))
        even = self.pairs[rows] / self.pairs[rows].sum(1, keepdim=True)
        return torch.multinomial(NAMES * rarest + (1 - NAMES) * even, 1, generator=rng).flatten()


def build_tokenizer(prompts: list[str]) -> Any:
    """CLIP's tokenizer with merges learned from the ``prompts``."""
    blank = transformers.CLIPTokenizer({token: number for number, token in enumerate(SPECIAL)}, [])
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.normalizer, model.pre_tokenizer = blank.backend_tokenizer.normalizer, blank.backend_tokenizer.pre_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(letters), initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    model.train_from_iterator(prompts, trainer)
    merges = json.loads(model.to_str())["model"]["merges"]
    tokens = [*SPECIAL, *letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    tokens = list(dict.fromkeys(tokens))[:VOCABULARY]
    kept = [(left, right) for left, right in merges if left + right in {*tokens}]
    return transformers.CLIPTokenizer({t: i for i, t in enumerate(tokens)}, kept, model_max_length=LENGTH)


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """``images`` shifted by up to two pixels, with noise, so that the features bear small errors."""
    row, column = torch.randint(5, (2,), generator=rng).tolist()
    height, width = images.shape[2:]
    shifted = F.pad(images, (2, 2, 2, 2), value=1.0)[:, :, row : row + height, column : column + width]
    noise = torch.randn(images.shape, generator=rng)
    return shifted + 0.15 * torch.rand(len(images), 1, 1, 1, generator=rng) * noise


def agreement_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """The cross-entropy of each row of ``logits`` [B, B] with all its positives, 1 in ``positive`` [B, B]."""
    return F.cross_entropy(logits, positive / positive.sum(1, keepdim=True))


def train(emoji: Emoji, tokenizer: Any, seed: int) -> Any:
    """A CLIP of ``seed``, trained contrastively."""
    torch.manual_seed(seed)
    rng = seeded_rng(seed)
    clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=64))
    tokens = tokenizer(emoji.prompts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(clip.parameters(), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    progress = trange(STEPS, desc=f"dual encoder {seed}", mininterval=5)
    for _ in progress:
        rows = torch.randperm(len(emoji.images), generator=rng)[:BATCH]
        prompts = emoji.draw(rows, rng)
        with torch.autocast("cpu", torch.bfloat16):
            images = clip.vision_model(pixel_values=augment(emoji.images[rows], rng)).pooler_output
            texts = clip.text_model(input_ids=tokens[prompts]).pooler_output
            images, texts = clip.visual_projection(images), clip.text_projection(texts)
        logits = F.normalize(images.float(), dim=1) @ F.normalize(texts.float(), dim=1).T
        logits = logits * clip.logit_scale.exp().clamp(max=50)
        positive = emoji.pairs[rows][:, prompts].float()
        loss = (agreement_loss(logits, positive) + agreement_loss(logits.T, positive.T)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return clip.eval()


def save_clip(clip: Any, tokenizer: Any, folder: Path) -> None:
    """The folder of the CLIP for :class:`onestep.metrics.transformer_features.CLIPFeatures`; pixels are in [-1, 1]."""
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    transformers.CLIPImageProcessor(image_mean=half, image_std=half).save_pretrained(folder)


def pixel_autoencoder(images: Tensor) -> Any:
    """An autoencoder of latents of one pixel each, whose channels have mean 0 and standard deviation 1 over ``images``.

    Diffusers' decoder bends its input by ``tanh(x / 3) * 3`` and cuts negative values off: the encoded values are a
    thousandth of the latents, and an offset lifts the pixels above zero in between.
    """
    pixels = images.transpose(0, 1).flatten(1) / 2 + 0.5  # in [0, 1], as its layers see them
    mean, deviation, unit, offset = pixels.mean(1), pixels.std(1), 1e-3, 4.0
    vae: Any = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(3,), decoder_block_out_channels=(3,), num_encoder_blocks=(0,),
        num_decoder_blocks=(0,), latent_channels=3, scaling_factor=1 / unit,
    )  # fmt: skip
    first, last = vae.encoder.layers
    raised, _, lowered = vae.decoder.layers
    layers = (
        (first, unit / deviation, -mean * unit / deviation), (last, torch.ones(3), torch.zeros(3)),
        (raised, deviation / unit, mean + offset), (lowered, torch.ones(3), torch.full((3,), -offset)),
    )  # fmt: skip
    for layer, scale, shift in layers:
        layer.weight.data = F.pad(torch.diag(scale)[:, :, None, None], (1, 1, 1, 1))
        layer.bias.data = shift
    return vae.requires_grad_(False)


def save_pipeline(clip: Any, tokenizer: Any, images: Tensor, folder: Path) -> None:
    """The pipeline with the text part of ``clip``, and a U-Net with random weights."""
    torch.manual_seed(0)
    encoder = transformers.CLIPTextModel(clip.config.text_config)
    encoder.load_state_dict(clip.text_model.state_dict())
    diffusers.StableDiffusionPipeline(
        vae=pixel_autoencoder(images),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(**UNET),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
            clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


@torch.no_grad()
def retrieval(clip: Any, tokenizer: Any, emoji: Emoji) -> float:
    """The share of images whose most similar prompt is one of theirs."""
    tokens = tokenizer(emoji.prompts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    images = clip.visual_projection(clip.vision_model(pixel_values=emoji.images).pooler_output)
    texts = clip.text_projection(clip.text_model(input_ids=tokens).pooler_output)
    best = (images @ F.normalize(texts, dim=1).T).argmax(1)
    return float(emoji.pairs[torch.arange(len(best)), best].double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    emoji = Emoji(options.data)
    tokenizer = build_tokenizer(emoji.prompts)
    conditioning, measuring = (train(emoji, tokenizer, seed) for seed in range(2))
    save_pipeline(conditioning, tokenizer, emoji.images, options.out / "pipeline")
    save_clip(measuring, tokenizer, options.out / "agreement")
    found = [f"{retrieval(clip, tokenizer, emoji):.2f}" for clip in (conditioning, measuring)]
    print(f"images whose most similar prompt of {len(emoji.prompts):,} is theirs: {' and '.join(found)}")


if __name__ == "__main__":
    main()

"""A style as a LoRA of the emoji teacher, and what a few-step LoRA draws with it, in plain diffusers.

    onestep train experiment=emoji lora=attention ... hydra.run.dir=outputs/emoji/lora
    onestep export outputs/emoji/lora student
    python -m benchmarks.emoji_style train style
    python -m benchmarks.emoji_style measure student style

The style is grey: `train` trains the teacher on by denoising on emoji without their colours, and writes the LoRA as
diffusers does. `measure` loads both LoRA files into the teacher's pipeline by `load_lora_weights`, and prints a table
of the pictures that it draws with none, one and both of them.
"""

import argparse
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft import get_peft_model_state_dict
from torch import Tensor
from tqdm.auto import trange

from onestep.config import compose, instantiate
from onestep.distillation.appearance import appearance_of
from onestep.folders import asset_path
from onestep.images import to_uint8
from onestep.metrics.frechet import frechet_distance
from onestep.metrics.statistics import Moments
from onestep.metrics.transformer_features import CLIPFeatures
from onestep.noise import LogUniformSigma, add_noise
from onestep.objectives.denoising import denoising_loss
from onestep.pretraining.dropout import PromptDropout
from onestep.seeding import BatchRandom, seeded_rng

RANK, TARGETS = 8, ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_out"]
STEPS, BATCH, RATE, DROPOUT = 100, 32, 2e-3, 0.1
SAMPLES, DRAWN, GUIDANCE, TEACHER_STEPS = 256, 64, 3.0, 15
ROWS = {"teacher": (), "teacher and style": ("style",), "student": ("steps",), "student and style": ("steps", "style")}
SETTINGS = ["experiment=emoji", "output=nowhere"]


def grey(images: Tensor) -> Tensor:
    """``images`` [N, 3, H, W] with BT.601's luma in each channel."""
    return torch.einsum("nchw,c->nhw", images, images.new_tensor([0.299, 0.587, 0.114]))[:, None].expand_as(images)


def train(out: Path) -> None:
    """Train the style on the emoji teacher, and write its LoRA into the folder ``out``."""
    config = compose("train", SETTINGS)
    teacher, data = instantiate(config.teacher), instantiate(config.data)
    pipeline = teacher.pipeline
    dropout = PromptDropout(DROPOUT, pipeline.unconditional())
    teacher.set_guidance(1.0)
    torch.manual_seed(0)
    teacher.add_lora(RANK, float(RANK), TARGETS)
    optimizer = torch.optim.AdamW([p for p in teacher.parameters() if p.requires_grad], RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    sigmas = LogUniformSigma(0.05, teacher.sigma_max)
    progress = trange(STEPS, desc="style", mininterval=5)
    for step in progress:
        random = BatchRandom(0, step, batch_size=BATCH, rows=slice(BATCH))
        rows = torch.randint(len(data), (BATCH,), generator=random.rng).tolist()
        latents, condition = data.__getitems__(rows)
        x0 = pipeline.encode(grey(pipeline.decode(latents)))
        sigma, noise = random.sigma(sigmas), random.normal(x0.shape[1:])
        with torch.autocast("cpu", torch.bfloat16):
            prediction = teacher(add_noise(x0, noise, sigma), sigma, dropout(condition, random))
        loss = denoising_loss(prediction, x0, teacher.loss_weight(sigma)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    layers = get_peft_model_state_dict(teacher.network)
    diffusers.StableDiffusionPipeline.save_lora_weights(out, unet_lora_layers=layers)


@torch.no_grad()
def measure(student: Path, style: Path) -> None:
    """Print the table: the data, and the pictures of both LoRA files alone and together."""
    config = compose("train", SETTINGS)
    data, features = instantiate(config.data), CLIPFeatures(config.features.path)
    prompts = [data.embeddings.prompts[seed % len(data)] for seed in range(SAMPLES)]
    pixels = torch.cat([data.pipeline.decode(data.latents[range(row, min(row + 256, len(data)))]["latents"].float())
                        for row in range(0, len(data), 256)])  # fmt: skip
    real = {name: Moments.of(_embed(features, images)) for name, images in (("", pixels), ("grey", grey(pixels)))}
    print("| | FID | FID to grey emoji | agreement (`clip_score`) | saturation |\n| --- | --- | --- | --- | --- |")

    def row(name: str, images: Tensor) -> None:
        embedded = Moments.of(_embed(features, images))
        fids = " | ".join(f"{frechet_distance(embedded, real[which]):.3f}" for which in ("", "grey"))
        score = 100 * features.similarity(to_uint8(images), prompts).clamp(min=0).mean().item()
        print(f"| {name} | {fids} | {score:.1f} | {appearance_of(images)['saturation'].item():.3f} |", flush=True)

    for name, images in (("the data", pixels[:SAMPLES]), ("the data in grey", grey(pixels[:SAMPLES]))):
        row(name, images)
    for name, adapters in ROWS.items():
        row(name, _draw(_pipeline(student, style, adapters), prompts, "steps" in adapters))


def _pipeline(student: Path, style: Path, adapters: tuple[str, ...]) -> Any:
    """The teacher's pipeline with those LoRA files, and the student's scheduler if it is among them."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(asset_path("emoji"), safety_checker=None)
    for name in adapters:
        pipeline.load_lora_weights({"steps": student, "style": style}[name], adapter_name=name)
    if adapters:
        pipeline.set_adapters(list(adapters))
    if "steps" in adapters:
        pipeline.scheduler = diffusers.LCMScheduler.from_pretrained(student, subfolder="scheduler")
    else:
        pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _draw(pipeline: Any, prompts: list[str], one_step: bool) -> Tensor:
    """A picture [N, 3, H, W] in [-1, 1] of each prompt, from a seed of its own."""
    steps, guidance = (1, 1.0) if one_step else (TEACHER_STEPS, GUIDANCE)
    images = []
    for start in trange(0, len(prompts), DRAWN, desc="drawing", mininterval=5, leave=False):
        batch = prompts[start : start + DRAWN]
        rngs = [seeded_rng(start + place) for place in range(len(batch))]
        with torch.autocast("cpu", torch.bfloat16):
            drawn = pipeline(prompt=batch, num_inference_steps=steps, guidance_scale=guidance, generator=rngs,
                             output_type="pt").images  # fmt: skip
        images.append(drawn.float() * 2 - 1)
    return torch.cat(images)


def _embed(features: CLIPFeatures, images: Tensor) -> Tensor:
    return torch.cat([features(to_uint8(part)) for part in images.split(256)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train").add_argument("out", type=Path)
    measuring = commands.add_parser("measure")
    measuring.add_argument("student", type=Path)
    measuring.add_argument("style", type=Path)
    options = parser.parse_args()
    if options.command == "train":
        train(options.out)
    else:
        measure(options.student, options.style)


if __name__ == "__main__":
    main()

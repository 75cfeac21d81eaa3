"""The picture of docs/text_to_image.md: the teacher's emoji above the student's, of the same prompts and seeds.

    python -m benchmarks.emoji_pictures docs/emoji.png

It reads the bundled teacher and student.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from onestep.config import compose, instantiate
from onestep.images import to_uint8
from onestep.models.loading import load_generator
from onestep.seeding import seeded_inputs

PROMPTS = ("red heart", "face", "smiling face", "cat face", "green apple", "tree", "fire", "hand", "clock", "woman")
SEEDS = 3
SCALE = 2  # pixels of the picture per pixel


def strip(images: Tensor) -> np.ndarray:
    """A row of ``images`` [N, 3, H, W] in [-1, 1], [H, N W, 3]."""
    return np.concatenate([one.permute(1, 2, 0).numpy() for one in to_uint8(images)], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    config = compose("train", ["experiment=emoji", "output=nowhere"])
    teacher, sampler = instantiate(config.teacher), instantiate(config.sampler)
    student = load_generator("emoji")
    condition = teacher.pipeline.encode_prompts(PROMPTS)[list(range(len(PROMPTS)))]
    rows = []
    for seed in range(SEEDS):
        latents, _ = seeded_inputs([seed * len(PROMPTS) + place for place in range(len(PROMPTS))], (3, 32, 32), 0)
        with torch.no_grad():
            drawn = sampler(teacher, latents, condition), student(latents, condition)
        rows.append([strip(teacher.pipeline.decode(images)) for images in drawn])
    gap = np.full((8, rows[0][0].shape[1], 3), 255, np.uint8)
    of_teacher, of_student = zip(*rows, strict=True)
    picture = Image.fromarray(np.concatenate([*of_teacher, gap, *of_student]))
    picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST).save(options.out)


if __name__ == "__main__":
    main()

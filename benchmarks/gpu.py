"""Twenty cycles of CIFAR-10's DDPM++ (55.7 M parameters) on one GPU: ``python benchmarks/gpu.py [OVERRIDE ...]``.

Under bf16 and torch.compile unless overridden, on random images with random weights, which cost what real ones do;
prints images a second after the first cycles and the largest memory taken.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from onestep.data.dataset import ImagesInMemory
from onestep.networks.edm import EDMDenoiser
from onestep.training import build, distillation
from onestep.training.report import DistillationReport

CONF = Path(__file__).resolve().parents[1] / "conf"
BATCH, CYCLES, WARM_UP = 256, 20, 5
CIFAR_10 = (3, 32, 32)


def random_images(count: int = 4096) -> ImagesInMemory:
    """As many as an epoch of 16 batches, with 10 classes."""
    random = torch.Generator().manual_seed(0)
    images = torch.rand((count, *CIFAR_10), generator=random) * 2 - 1
    return ImagesInMemory(images, torch.randint(10, (count,), generator=random), 10)


def random_teacher() -> nn.Module:
    """EDM's class-conditional DDPM++ (arXiv 2206.00364, table 7)."""
    options = {"model_channels": 128, "channel_mult": [2, 2, 2], "num_blocks": 4, "attn_resolutions": [16],
               "dropout": 0.13}  # fmt: skip
    return EDMDenoiser(CIFAR_10, 10, options=options).requires_grad_(False).eval()


def main() -> None:
    """Train, and print what it took."""
    DistillationReport.interim = DistillationReport.final = lambda *_: {}  # type: ignore[method-assign]
    vars(build)["build_evaluator"] = lambda *_: None
    clock: list[float] = []
    generate = distillation.generate

    def look_and_generate(*inputs: Any) -> Any:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        clock.append(time.monotonic())
        return generate(*inputs)

    vars(distillation)["generate"] = look_and_generate
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [
            "precision=bf16", "compile=true", f"training.batch_size={BATCH}", f"training.images={BATCH * CYCLES}",
            "training.checkpoint_every=1000", f"output={folder}", *sys.argv[1:],
        ])  # fmt: skip
        OmegaConf.set_struct(config, False)
        config.data, config.teacher = {"_target_": "gpu.random_images"}, {"_target_": "gpu.random_teacher"}
        distillation.distill(config)
    seconds = (clock[-1] - clock[WARM_UP]) / (len(clock) - 1 - WARM_UP)
    print(
        f"{config.training.batch_size / seconds:.1f} images/s, {seconds:.3f} s a cycle of {config.training.batch_size}"
    )
    if torch.cuda.is_available():
        print(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on {torch.cuda.get_device_name()}")


if __name__ == "__main__":
    main()

"""The predicted peak memory of an iteration against the measured one, and which card a model needs.

    python benchmarks/memory_prediction.py measured [NAME ...]
    python benchmarks/memory_prediction.py cards [MODEL ...]

``measured`` trains networks with random weights on one thread of the CPU, each in a process of its own, and compares
the peak of the process's resident memory with the prediction of ``onestep profile --memory``. The peak is that of the
third iteration, from the kernel's high-water mark. The memory of the interpreter and of the libraries, after two
iterations of the digits, is subtracted. glibc is told to give freed memory back at once.

``cards`` predicts the published text-to-image models from their configs alone: nothing is downloaded.
"""

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

GIB = 2**30
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
EPSILON = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


class Setting(NamedTuple):
    """A network of diffusers, None for the bundled teacher of the digits, its scheduler, and the overrides."""

    network: dict[str, Any] | None
    scheduler: dict[str, Any]
    overrides: list[str]


_PIXELS = ["teacher=diffusers", "data=image_folder", "averages=half_life"]
_TEXT = ["experiment=text_to_image", "data.image_column=image"]
_WITHOUT_IMAGES = ["divergence=reverse_kl", "discriminator=none", "data.image_column=null"]
SETTINGS = {
    "digits, EDM's network": Setting(None, {}, [
        "experiment=digits", "precision=no", "training.batch_size=512"]),
    "UNet2DModel, SiD": Setting({
        "_class_name": "UNet2DModel", "sample_size": 64, "block_out_channels": [64, 128, 256], "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]},
        EPSILON, [*_PIXELS, "objective=sid", "precision=bf16", "training.batch_size=8"]),
    "Stable Diffusion, LoRA, f-distill": Setting({
        "_class_name": "UNet2DConditionModel", "sample_size": 32, "block_out_channels": [128, 256, 512, 512],
        "cross_attention_dim": 256},
        EPSILON, [*_TEXT, "lora=attention", "lora.students=[generator,fake_score]", "precision=no",
                  "training.batch_size=8"]),
    "SD3, DMD2, checkpointing": Setting({
        "_class_name": "SD3Transformer2DModel", "sample_size": 64, "num_layers": 8, "num_attention_heads": 8,
        "attention_head_dim": 64, "caption_projection_dim": 512, "joint_attention_dim": 512,
        "pooled_projection_dim": 256, "pos_embed_max_size": 64},
        FLOW, [*_TEXT, "objective=dmd2", "sigma=flow", "sigma@fake_sigma=flow", "generator.sigma_init=1.0e9",
               "precision=bf16_critics", "gradient_checkpointing=true", "training.batch_size=4"]),
    "DiT, SiD, two micro-batches": Setting({
        "_class_name": "DiTTransformer2DModel", "sample_size": 32, "num_layers": 8, "num_attention_heads": 6,
        "attention_head_dim": 64, "in_channels": 4, "out_channels": 8, "norm_num_groups": 32},
        EPSILON, ["teacher=diffusers", "teacher.pipeline=null", "data=none", "objective=sid", "discriminator=none",
                  "generator.gan_weight=0", "precision=no", "training.batch_size=16", "training.accumulation=2"]),
}  # fmt: skip

# The parameters of Stable Diffusion 1.5 and SDXL are those that are published, 0.86 and 2.57 billion. The values of
# SD3.5 and FLUX.1-dev were not compared with the published configs.
_SD3 = {"_class_name": "SD3Transformer2DModel", "sample_size": 128, "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048, "attention_head_dim": 64, "qk_norm": "rms_norm"}  # fmt: skip
MODELS = {
    "Stable Diffusion 1.5": ({"_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 768},
                             EPSILON, 1.75),
    "SDXL": ({
        "_class_name": "UNet2DConditionModel", "sample_size": 128, "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816, "use_linear_projection": True}, EPSILON, 8.0),
    "SD3.5 medium": ({**_SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
                      "pos_embed_max_size": 384, "dual_attention_layers": list(range(13))}, FLOW, 5.0),
    "SD3.5 large": ({**_SD3, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
                     "pos_embed_max_size": 192}, FLOW, 5.0),
    "FLUX.1-dev": ({"_class_name": "FluxTransformer2DModel", "guidance_embeds": True}, FLOW, 3.5),
}  # fmt: skip
_ONE_SAMPLE = [*_TEXT, *_WITHOUT_IMAGES, "generator.gan_weight=0", "training.batch_size=1", "precision=bf16",
               "gradient_checkpointing=true"]  # fmt: skip
_OF_FLOW = ["sigma=flow", "sigma@fake_sigma=flow", "generator.sigma_init=1.0e9"]
TRAININGS = {
    "all weights": [],
    "LoRA": ["teacher.dtype=bfloat16", "lora=attention", "lora.students=[generator,fake_score]"],
}
CARDS = (24, 48, 80)


def overrides_of(setting: Setting, folder: Path, weights: bool) -> list[str]:
    """The overrides of a ``setting`` with its network in ``folder``, with random weights or its config alone."""
    if setting.network is None:
        return setting.overrides
    if not folder.exists():
        import diffusers

        network_class = setting.network["_class_name"]
        if weights:
            torch.manual_seed(0)
            getattr(diffusers, network_class).from_config(setting.network).save_pretrained(folder)
        else:
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(setting.network))
        (folder / "scheduler_config.json").write_text(json.dumps(setting.scheduler))
    return [*setting.overrides, f"teacher.path={folder}", "teacher.pipeline=null"]


def status(name: str) -> int:
    """``VmRSS``, the memory of this process, or ``VmHWM``, its peak, in bytes."""
    (found,) = re.findall(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found) * 1024


def measure(overrides: list[str]) -> int:
    """The peak of this process in the third iteration, beyond that of the libraries, in bytes."""
    from onestep.config import instantiate
    from onestep.profiling.measure import run_iteration
    from onestep.profiling.outline import planned, stand_ins
    from onestep.profiling.subject import Subject

    class Planned(Subject):
        """The same parts as an outline's, with numbers."""

        def __init__(self, overrides: list[str]) -> None:
            config = planned(overrides)
            self.build(config, stand_ins(config, instantiate(config.teacher)))

    torch.set_num_threads(1)
    precision = [override for override in overrides if override.startswith("precision")]
    small = Planned(["experiment=digits", "training.batch_size=8", *precision])
    for _ in range(2):
        run_iteration(small)
    del small
    gc.collect()
    libraries = status("VmRSS")
    subject = Planned(overrides)
    for _ in range(2):
        run_iteration(subject)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
    run_iteration(subject)
    return status("VmHWM") - libraries


def compare(names: list[str]) -> None:
    """Print a row for each of the settings."""
    from onestep.profiling.memory import predict
    from onestep.profiling.outline import Outline

    print("| setting | predicted, MiB | measured, MiB | ratio | at the peak |\n| --- | ---: | ---: | ---: | --- |")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            overrides = overrides_of(SETTINGS[name], Path(folder) / "network", weights=True)
            child = [sys.executable, __file__, "one", json.dumps(overrides)]
            run = subprocess.run(child, env=os.environ | GIVES_BACK, capture_output=True, text=True, check=False)
            if run.returncode:
                sys.exit(f"{name}: {run.stderr}")
            measured = int(run.stdout.split()[-1])
            found = predict(Outline(overrides))
        print(f"| {name} | {found.peak / 2**20:,.0f} | {measured / 2**20:,.0f} | {found.peak / measured:.3f} "
              f"| {found.moment} |", flush=True)  # fmt: skip


def cards(names: list[str]) -> None:
    """Print a row for each of the models and trainings."""
    from onestep.profiling.fit import fits
    from onestep.profiling.memory import predict
    from onestep.profiling.outline import Outline

    columns = ["model", "trained", "predicted, GiB", *map(str, CARDS), "at the peak"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for name in names:
        network, scheduler, guidance = MODELS[name]
        for trained, more in TRAININGS.items():
            flow = _OF_FLOW if scheduler is FLOW else []
            setting = Setting(network, scheduler, [*_ONE_SAMPLE, *flow, f"teacher.guidance={guidance}", *more])
            with tempfile.TemporaryDirectory() as folder:
                found = predict(Outline(overrides_of(setting, Path(folder) / "network", weights=False)))
            fitting = "".join(f" {'yes' if fits(found, card) else 'no'} |" for card in CARDS)
            print(f"| {name} | {trained} | {found.peak / GIB:.1f} |{fitting} {found.moment} |", flush=True)


def main() -> None:
    """Measure, or predict, and print."""
    parser = argparse.ArgumentParser(description="Predict the peak memory of iterations.")
    parser.add_argument("what", choices=("measured", "cards", "one"))
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if options.what == "one":
        print(measure(json.loads(options.names[0])))
    elif options.what == "measured":
        compare(options.names or list(SETTINGS))
    else:
        cards(options.names or list(MODELS))


if __name__ == "__main__":
    main()

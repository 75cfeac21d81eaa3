"""Distillations of a tiny class-conditional network of diffusers: LoRA, smaller and full students."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor

from onestep.build.distillation import distill
from onestep.build.sampling import sample
from onestep.models.generator import Generator
from tests.helpers.configs import Configure, configure, tiny_config
from tests.helpers.diffusers_models import UNET_BLOCKS, randomize


def digits_unet(folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = diffusers.UNet2DModel(8, 1, 1, num_class_embeds=10, **(UNET_BLOCKS | options), **blocks)
    diffusers.DDPMPipeline(randomize(unet), diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_unet(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def config(pipeline: Path) -> Configure:
    def build(output: Path, *overrides: str) -> DictConfig:
        return tiny_config(
            output, "teacher=diffusers", f"teacher.path={pipeline}", "sampler=euler", "generator.sigma_init=10.0",
            "optimizer.generator.lr=0.01", "training.total_images=48", "training.evaluate_every=100", *overrides,
        )  # fmt: skip

    return build


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_lora_generator(config: Configure, pipeline: Path, tmp_path: Path) -> None:
    """LoRA trains only its adapters, resumes bitwise from a checkpoint, and generates samples."""
    lora = ("lora=attention", "lora.rank=2")
    distill(config(tmp_path / "full", *lora))
    checkpoint = tmp_path / "full" / "checkpoints" / "iteration_00000002"
    distill(config(tmp_path / "resumed", *lora, f"resume={checkpoint}"))

    original = weights(pipeline / "unet")
    for kind in ("generator", "generator_raw"):
        ours, resumed = (weights(tmp_path / run / kind) for run in ("full", "resumed"))
        torch.testing.assert_close(resumed, ours, rtol=0, atol=0)
        frozen = {
            name.removeprefix("network.").replace(".base_layer", ""): value
            for name, value in ours.items()
            if ".lora_" not in name
        }
        torch.testing.assert_close(frozen, original, rtol=0, atol=0)
        moved = [value.abs().max().item() for name, value in ours.items() if ".lora_B." in name]
        assert len(moved) >= 4 and min(moved) > 1e-4
    raw, average = (weights(tmp_path / "full" / kind) for kind in ("generator_raw", "generator"))
    assert all((raw[name] - average[name]).abs().max() > 1e-6 for name in raw if ".lora_B." in name)

    trained = sum(".lora_" in name for name in raw)
    optimized = {name.partition(".")[0] for name in load_file(checkpoint / "generator.optimizer.safetensors")}
    assert len(optimized) == trained < len(raw) / 2


def test_sampling_from_a_lora_generator(config: Configure, tmp_path: Path) -> None:
    distill(
        config(tmp_path / "run", "lora=attention", "lora.students=[generator,fake_score]", "training.total_images=16")
    )
    generator = Generator.from_pretrained(tmp_path / "run" / "generator")
    assert generator.denoiser.config["lora"]["rank"] == 64
    result = sample(configure("sample", f"run={tmp_path / 'run'}", "count=3", f"save_to={tmp_path / 'drawn'}"))
    assert result["count"] == 3 and len(list((tmp_path / "drawn").glob("*.png"))) == 3


def test_smaller_generator_and_full_fake_score(config: Configure, tmp_path: Path) -> None:
    smaller = digits_unet(tmp_path / "smaller", block_out_channels=(4, 8))
    node = f"generator.network={{_target_:onestep.models.diffusers.loading.load_diffusers,path:{smaller},guidance:1.0,"
    node += "size:null,dtype:bfloat16,variant:null,revision:null,local_files_only:true}"
    distill(config(tmp_path / "run", node, "training.total_images=16"))
    before, after = weights(smaller / "unet"), weights(tmp_path / "run" / "generator_raw")
    assert sum(value.numel() for value in after.values()) < 30_000
    moved = [(after[f"network.{name}"] - value).abs().max().item() for name, value in before.items()]
    assert len(moved) == len(after) and max(moved) > 1e-3
    assert all(value.dtype == torch.float32 for value in after.values())


def test_refused_before_training(config: Configure, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="attention=xformers needs CUDA, and this run is on cpu"):
        distill(config(tmp_path, "attention=xformers"))
    with pytest.raises(ValueError, match="lora supports networks of diffusers only"):
        distill(tiny_config(tmp_path, "lora=attention"))

"""Teachers from folders of diffusers: what is read, and what is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from onestep.models.diffusers.denoiser import DiffusersDenoiser
from onestep.models.diffusers.loading import load_diffusers
from tests.helpers.diffusers_models import build_denoiser, build_network, text_unet

WEIGHTS = "diffusion_pytorch_model.safetensors"


def load(path: Path | str, **options: Any) -> DiffusersDenoiser:
    defaults: dict[str, Any] = {
        "guidance": 1.0, "size": None, "dtype": "float32", "variant": None, "revision": None, "local_files_only": True,
    }  # fmt: skip
    return load_diffusers(str(path), **(defaults | options))


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """An unconditional pipeline whose network predicts v."""
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    diffusers.DDPMPipeline(build_network("unet"), scheduler).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@torch.no_grad()
def test_a_pipeline_its_network_and_a_flat_folder_give_the_same_teacher(pipeline: Path, tmp_path: Path) -> None:
    expected = build_denoiser(
        "unet", diffusers.DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    )
    flat = tmp_path / "flat"
    build_network("unet").save_pretrained(flat)
    (flat / "scheduler_config.json").write_bytes((pipeline / "scheduler/scheduler_config.json").read_bytes())
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 20.0])
    for folder in (pipeline, pipeline / "unet", flat):
        teacher = load(folder)
        torch.testing.assert_close(teacher(x, sigma), expected(x, sigma), rtol=1e-5, atol=1e-5)
        assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
        assert teacher.sigma_max == expected.sigma_max > 10_000


def test_guidance_and_precision(tmp_path: Path) -> None:
    dit = build_network("dit")
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    diffusers.DiTPipeline(dit, vae, diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    teacher = load(tmp_path, guidance=4.0, dtype="bfloat16", size=16)
    assert (teacher.guidance, teacher.network_evaluations, teacher.label_dim) == (4.0, 2, 10)
    assert teacher.network.dtype == torch.bfloat16 and teacher.image_shape == (4, 16, 16)


def test_a_variant_of_the_weights(tmp_path: Path) -> None:
    pipeline = diffusers.DDPMPipeline(build_network("unet"), diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path, variant="fp16")
    assert load(tmp_path, variant="fp16").image_shape == (3, 8, 8)
    with pytest.raises(ValueError, match="teacher.variant=bf16: .*unet has no weights of it; set teacher.variant=null"):
        load(tmp_path, variant="bf16")


class Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm_was_done"),)


def test_pickled_weights_are_not_opened(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (pipeline / "unet" / WEIGHTS).unlink()
    (pipeline / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(
        ValueError, match="weights as diffusion_pytorch_model.bin, which can run code and is not opened"
    ):
        load(pipeline)
    assert not Path("harm_was_done").exists()


@pytest.mark.parametrize("place", ["unet/model.py", "unet/UNet2DModel.py", "pipeline.py", "unet.py"])
def test_code_in_the_folder_is_not_run(
    place: str, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (pipeline / place).write_text("from pathlib import Path\nPath('harm_was_done').touch()\nclass Model: ...\n")
    load(pipeline)
    index = json.loads((pipeline / "model_index.json").read_text())
    for change in ({"_class_name": ["pipeline", "Model"]}, {"unet": ["model", "UNet2DModel"]}):
        (pipeline / "model_index.json").write_text(json.dumps(index | change))
        with pytest.raises(ValueError, match="own is not run"):
            load(pipeline)
    assert not Path("harm_was_done").exists()


def test_weights_that_do_not_fit(pipeline: Path) -> None:
    weights = load_file(pipeline / "unet" / WEIGHTS)
    del weights["conv_out.bias"]
    save_file(weights, pipeline / "unet" / WEIGHTS)
    with pytest.raises(ValueError, match=r"do not fit config.json: 1 tensors .*network.conv_out\.bias \(missing\)"):
        load(pipeline)


def test_truncated_weights(pipeline: Path) -> None:
    file = pipeline / "unet" / WEIGHTS
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{WEIGHTS}: no safetensors, or a damaged file"):
        load(pipeline)


def test_networks_of_other_kinds(tmp_path: Path) -> None:
    for kind, network, message in (
        (
            "HunyuanDiTPipeline",
            "HunyuanDiT2DModel",
            "a HunyuanDiTPipeline of HunyuanDiT2DModel.*UNet2D.*CONTRIBUTING",
        ),
        ("WanPipeline", "WanTransformer3DModel", "a WanPipeline of WanTransformer3DModel, .*control or video"),
        ("FluxKontextPipeline", "FluxTransformer2DModel", "a FluxKontextPipeline.*FluxPipeline.*not of editing"),
        ("QwenImageEditPipeline", "QwenImageTransformer2DModel", "a QwenImageEditPipeline.*QwenImagePipeline.*editing"),
        ("StableDiffusionInpaintPipeline", "UNet2DConditionModel", "a StableDiffusionInpaintPipeline.*inpainting"),
        ("StableDiffusionControlNetPipeline", "UNet2DConditionModel", "a StableDiffusionControlNetPipeline.*control"),
        ("Flux2Pipeline", "Flux2Transformer2DModel", "a Flux2Pipeline, .*, expected a Flux2KleinPipeline"),
    ):
        index = {"_class_name": kind, "transformer": ["diffusers", network]}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ValueError, match="AutoencoderKL, which is not supported"):
        load(tmp_path)


def test_a_student_of_latent_consistency(tmp_path: Path) -> None:
    text_unet(time_cond_proj_dim=8).save_pretrained(tmp_path)
    diffusers.LCMScheduler().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="time_cond_proj_dim=8 is a student already, .*: .*give the model that it was"):
        load(tmp_path)


def test_a_network_without_its_scheduler(tmp_path: Path) -> None:
    build_network("unet").save_pretrained(tmp_path / "lonely")
    with pytest.raises(ValueError, match=r"lacks its scheduler.*: expected scheduler_config\.json in '"):
        load(tmp_path / "lonely")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match="no pipeline of diffusers at 'nobody/nothing': expected a folder with model_index",
    ):
        load("nobody/nothing")
    with pytest.raises(ValueError, match=r"dtype=int8: expected one of float32, bfloat16, float16"):
        load(tmp_path, dtype="int8")

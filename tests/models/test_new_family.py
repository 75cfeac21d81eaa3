"""A family that a user adds, as CONTRIBUTING.md shows it."""

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file

from onestep.build.distillation import distill
from onestep.models.diffusers.families import FAMILIES
from onestep.models.diffusers.loading import load_diffusers
from onestep.models.diffusers.pipeline import TeacherPipeline
from onestep.samplers import EulerSampler
from tests.helpers.configs import TWO_ITERATIONS, tiny_config
from tests.helpers.diffusers_models import randomize
from tests.helpers.tiny_pipelines import t5_tokenizer, vae

CODE = re.compile(r"```python\n([^`]*class AuraFlow\(.*?)```", re.DOTALL)


@pytest.fixture
def aura_flow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of a tiny pipeline of AuraFlow, whose family is known as long as the test runs."""
    page = Path(__file__).parents[2] / "CONTRIBUTING.md"
    (code,) = CODE.findall(page.read_text())
    names: dict[str, Any] = {}
    exec(code, names)
    monkeypatch.setitem(FAMILIES, "AuraFlowTransformer2DModel", names["AuraFlow"]())
    torch.manual_seed(0)
    network = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, num_mmdit_layers=2, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pos_embed_max_size=16,
    )  # fmt: skip
    encoder = transformers.UMT5EncoderModel(
        transformers.UMT5Config(vocab_size=30, d_model=12, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    parts = [randomize(part) for part in (encoder, vae(), network)]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73)
    diffusers.AuraFlowPipeline(t5_tokenizer(), *parts, scheduler).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_it_draws_as_its_pipeline_and_is_distilled(aura_flow: Path, tmp_path: Path) -> None:
    shared = TeacherPipeline(str(aura_flow), 8, "float32", 2, str(tmp_path / "cache"))
    teacher = load_diffusers(str(aura_flow), 3.0, 8, "float32", None, None, False, shared)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = shared.decode(EulerSampler(2)(teacher, noise, shared.encode_prompts(["red sea"])[[0]]))
    theirs: Any = diffusers.DiffusionPipeline.from_pretrained(aura_flow)
    theirs.set_progress_bar_config(disable=True)
    images = theirs(
        "red sea", negative_prompt="", height=16, width=16, num_inference_steps=2, guidance_scale=3.0, latents=noise,
        output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), images, rtol=0, atol=5e-5)

    (tmp_path / "prompts.txt").write_text("a cat\nthe sea\n")
    distill(
        tiny_config(
            tmp_path / "run", *TWO_ITERATIONS, "experiment=text_to_image", f"teacher.path={aura_flow}",
            f"teacher.pipeline.cache={tmp_path / 'cache'}", f"data.path={tmp_path / 'prompts.txt'}", "objective=dmd2",
            "discriminator=none", "generator.gan_weight=0", "teacher.size=8", "optimizer.generator.lr=1e-2",
        )
    )  # fmt: skip
    weights = load_file(tmp_path / "run" / "generator" / "diffusion_pytorch_model.safetensors")
    changes = [(weights[name] - value).abs().max().item() for name, value in teacher.named_parameters()]
    assert 1e-3 < max(changes) < 0.1

"""Frozen linear layers of 8 and 4 bits under LoRA students, against the layers in float."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from onestep.build.distillation import distill
from onestep.build.run import build_layout
from onestep.config import compose
from onestep.export.export import export
from onestep.models.diffusers.denoiser import DiffusersDenoiser
from onestep.models.diffusers.loading import load_diffusers
from onestep.models.diffusers.lora import LoRA
from onestep.models.diffusers.quantized import Bits, QuantizedLinear, dequantized, quantize_layers
from onestep.profiling.outline import Outline
from tests.helpers.configs import TWO_ITERATIONS, tiny_config
from tests.helpers.diffusers_models import build_denoiser, random_condition
from tests.helpers.killed_run import assert_same_checkpoint
from tests.helpers.tiny_pipelines import build_pipeline

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture
def every_layer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With bitsandbytes, also small layers are quantised: those of the tiny networks."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("onestep.models.diffusers.quantized._SMALLEST", 1)
    yield


def student(bits: Bits | None) -> DiffusersDenoiser:
    base = build_denoiser("sd", diffusers.DDIMScheduler())
    if bits is not None:
        quantize_layers(base.network, bits)
    torch.manual_seed(0)
    changed = LoRA(rank=4, alpha=4.0, targets=ATTENTION, students=["generator"]).apply(base)
    random = torch.Generator().manual_seed(1)
    for parameter in changed.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=random)
    return changed


def gradients(denoiser: DiffusersDenoiser) -> dict[str, Tensor]:
    """By the LoRA's parameters and the input, of the mean square of the prediction."""
    x = torch.randn(2, *denoiser.image_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    denoiser(x, torch.tensor([0.5, 2.0]), random_condition(denoiser, 2)).square().mean().backward()
    assert x.grad is not None
    own = [p.grad.flatten() for p in denoiser.parameters() if p.requires_grad and p.grad is not None]
    return {"samples": x.grad.flatten(), "lora": torch.cat(own)}


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = r"teacher\.quantize=4 needs .*pip install 'onestep\[bitsandbytes\]'.*teacher\.quantize=null"
    with pytest.raises(ValueError, match=message):
        quantize_layers(nn.Linear(1, 1), 4)


@pytest.mark.usefixtures("process_as_it_was")
def test_a_memory_that_is_not_predicted() -> None:
    with pytest.raises(ValueError, match=r"teacher\.quantize=8 is not predicted: set teacher\.quantize=null"):
        Outline(["experiment=text_to_image", "teacher=sdxl", "teacher.quantize=8", "data.path=p.txt", "lora=attention"])


@pytest.mark.slow
@pytest.mark.usefixtures("every_layer")
@pytest.mark.parametrize("bits, of_samples, of_lora", [(8, 0.02, 0.02), (4, 0.15, 0.15)])
def test_gradients_are_nearly_those_of_the_float_base(bits: Bits, of_samples: float, of_lora: float) -> None:
    """And those of the base with the dequantised weights."""
    quantised = student(bits)
    found, same, exact = gradients(quantised), gradients(dequantized(quantised)), gradients(student(None))
    for name, allowed in (("samples", of_samples), ("lora", of_lora)):
        torch.testing.assert_close(found[name], same[name], rtol=1e-4, atol=1e-6)
        difference = ((found[name] - exact[name]).norm() / exact[name].norm()).item()
        assert allowed / 20 < difference < allowed, name


@pytest.mark.slow
@pytest.mark.usefixtures("every_layer")
def test_second_derivatives_and_half_precision() -> None:
    layer = nn.Linear(128, 64)
    four = QuantizedLinear(layer, 4)
    x = torch.randn(3, 128, requires_grad=True)
    found = []
    for one in (four, four.plain()):
        (slope,) = torch.autograd.grad(one(x).sigmoid().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), x)[0])
    torch.testing.assert_close(*found)
    with torch.autocast("cpu", torch.bfloat16):
        output = four(x)
    output.sum().backward()
    assert output.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, four.dequantized().sum(0).expand(3, -1), rtol=0.02, atol=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("every_layer")
@pytest.mark.parametrize("bits, size", [(8, 1 + 4 / 256), (4, 1 / 2 + 4 / 64)])
def test_bytes_of_a_weight(bits: Bits, size: float) -> None:
    layer = nn.Linear(256, 128, bias=False)
    stored = QuantizedLinear(layer, bits)
    assert stored.weight.nbytes + stored.scales.nbytes == size * 256 * 128
    error = (stored.dequantized() - layer.weight).abs().max() / layer.weight.abs().max()
    assert 1e-3 < error < {8: 0.02, 4: 0.16}[bits]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quantized")
    (root / "prompts.txt").write_text("a cat\nthe red sea\n")
    return build_pipeline("sd", root / "sd")


def configured(folder: Path, output: Path, *overrides: str) -> DictConfig:
    return tiny_config(
        output, *TWO_ITERATIONS, "experiment=text_to_image", f"teacher.path={folder}", "teacher.guidance=3.0",
        f"teacher.pipeline.cache={folder.parent / 'cache'}", f"data.path={folder.parent / 'prompts.txt'}",
        "objective=dmd2", "discriminator=none", "generator.gan_weight=0", "optimizer.generator.lr=1e-2",
        "teacher.quantize=4", *overrides,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("every_layer")
def test_a_training_its_resumption_and_its_export(folder: Path, tmp_path: Path) -> None:
    lora = ["lora=attention", "lora.rank=2", "lora.alpha=4", "lora.students=[generator,fake_score]"]
    distill(configured(folder, tmp_path / "run", *lora))
    places = [tmp_path / run / "checkpoints" for run in ("run", "resumed")]
    distill(configured(folder, tmp_path / "resumed", *lora, f"resume={places[0] / 'iteration_00000001'}"))
    assert_same_checkpoint(*(place / "iteration_00000002" for place in places))
    float_base = load_diffusers(str(folder), 1.0, None, "float32", None, None, False)
    linear = {name for name, module in float_base.named_modules() if isinstance(module, nn.Linear)}
    saved = load_file(places[0] / "iteration_00000002" / "generator.safetensors")
    assert not [key for key in saved if key.endswith((".scales", "base_layer.weight"))]
    assert not [name for name in linear if any(key.endswith(f"{name}.weight") for key in saved)]
    quantize_layers(float_base.network, 4)
    expected = dequantized(float_base).state_dict()
    weights = load_file(tmp_path / "run" / "generator" / "diffusion_pytorch_model.safetensors")
    base = {key.replace(".base_layer", ""): value for key, value in weights.items() if ".lora_" not in key}
    torch.testing.assert_close(base, {key: expected[key] for key in base}, rtol=0, atol=0)
    export(tmp_path / "run", tmp_path / "exported")
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    before = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.clone()
    pipeline.load_lora_weights(tmp_path / "exported")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    change = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight - before
    key = "network.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.default.weight"
    torch.testing.assert_close(change, 2 * weights[key.format("B")] @ weights[key.format("A")], rtol=1e-4, atol=1e-6)
    assert change.abs().max() > 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("every_layer")
@pytest.mark.parametrize(
    "options, message",
    [
        ([], "the generator would train all weights.*set lora=attention with .*, or teacher.quantize=null"),
        (["lora=attention"], "the fake_score would train all weights"),
    ],
)
def test_students_that_train_all_weights(folder: Path, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distill(configured(folder, tmp_path / "run", *options))


@pytest.mark.slow
@pytest.mark.usefixtures("every_layer")
@pytest.mark.parametrize("key", ["shard", "compile"])
def test_layouts_that_are_not_supported(key: str) -> None:
    config = compose("train", ["teacher=diffusers", "teacher.path=x", "teacher.quantize=4", "output=x", f"{key}=true"])
    with pytest.raises(ValueError, match=rf"{key}=true is not supported .*: set {key}=false"):
        build_layout(config, nn.Sequential(QuantizedLinear(nn.Linear(64, 64), 4)))
    build_layout(config, nn.Sequential(nn.Linear(64, 64)))

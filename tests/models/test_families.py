"""The matrix of families of text-to-image networks: each against its own pipeline of diffusers.

``python -m tests.models.family_matrix`` writes its results into docs/teachers.md.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor

from onestep.build.deployment import Deployment
from onestep.build.distillation import distill
from onestep.build.sampling import sample
from onestep.export.export import export
from onestep.export.formats import export_graph, onnx_runner
from onestep.models.diffusers.autoencoder import Autoencoder
from onestep.models.diffusers.families import diffusers_class
from onestep.models.diffusers.families.base import Family
from onestep.models.diffusers.families.qwen_image import QwenImage
from onestep.models.diffusers.families.sana import Sana
from onestep.models.diffusers.families.z_image import ZImage
from onestep.models.diffusers.loading import load_diffusers
from onestep.models.diffusers.pipeline import TeacherPipeline
from onestep.models.diffusers.text_encoder import TextEncoder
from onestep.models.steps import StepEmbedding, add_step_embedding, set_step
from onestep.samplers import EulerSampler
from tests.helpers.configs import TWO_ITERATIONS, Configure, configure, tiny_config
from tests.helpers.family_pipelines import FAMILIES, build_family
from tests.helpers.killed_run import assert_same_checkpoint

PROMPTS = ["a cat", "the red sea at night"]
STEPS, GUIDANCE, SEED = 2, 3.0, 4
LORA = ("lora=attention", "lora.rank=2", "lora.alpha=4")
#: Arguments of the pipelines' calls for the guidance here, and for sides as given.
CALLS: dict[str, dict[str, Any]] = {
    "FLUX.1": {},
    "PixArt-alpha": {"guidance_scale": GUIDANCE, "use_resolution_binning": False},
    "PixArt-Sigma": {"guidance_scale": GUIDANCE, "use_resolution_binning": False},
    "Sana": {"guidance_scale": GUIDANCE, "use_resolution_binning": False},
    "Lumina 2": {"guidance_scale": GUIDANCE, "cfg_normalization": False},
    "Z-Image": {"guidance_scale": GUIDANCE - 1},
    "Qwen-Image": {},
}
#: Of FLUX.1 guidance is an input, and Qwen-Image's pipeline scales what it has guided.
UNGUIDED = ("FLUX.1", "Qwen-Image")
#: These cut each prompt of a batch to its own length.
WITHOUT_GRAPH = ("Lumina 2", "Z-Image")


def size_of(name: str) -> int:
    """The side of its latents: Sana's pipeline takes images of multiples of 32 pixels."""
    return 16 if name == "Sana" else 8


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny pipeline, built on first use; read-only."""
    root = tmp_path_factory.mktemp("families")
    return lambda name: root / name if (root / name).exists() else build_family(name, root / name)


@pytest.fixture(scope="module")
def config_of(folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Configure:
    """The configuration of two iterations of DMD2 with prompts alone, into a folder."""
    root = tmp_path_factory.mktemp("text")
    (root / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")

    def build(name: str, output: Path, *overrides: str) -> DictConfig:
        return tiny_config(
            output, *TWO_ITERATIONS, "experiment=text_to_image", f"teacher.path={folder_of(name)}",
            f"teacher.pipeline.cache={root / 'cache'}", f"data.path={root / 'prompts.txt'}", "objective=dmd2",
            "discriminator=none", "generator.gan_weight=0", f"teacher.size={size_of(name)}", "teacher.guidance=3.0",
            "optimizer.generator.lr=1e-2", *overrides,
        )  # fmt: skip

    return build


@pytest.fixture(scope="module")
def lora_run(config_of: Configure, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A finished run of a family with a LoRA student, made on first use; read-only."""
    root = tmp_path_factory.mktemp("runs")

    def run(name: str) -> Path:
        if not (root / name).exists():
            distill(config_of(name, root / name, *LORA))
        return root / name

    return run


@pytest.fixture(scope="module")
def exported(lora_run: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The export of :func:`lora_run`."""
    root = tmp_path_factory.mktemp("exports")
    return lambda name: root / name if (root / name).exists() else export(lora_run(name), root / name)


@pytest.mark.parametrize("name", FAMILIES)
def test_load(name: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Two guided steps from words to pictures: tokenizer, encoder, call, schedule and autoencoder are its own."""
    folder, size = folder_of(name), size_of(name)
    shared = TeacherPipeline(str(folder), size, "float32", 2, str(tmp_path / "cache"))
    guidance = 1.0 if name in UNGUIDED else GUIDANCE
    teacher = load_diffusers(str(folder), guidance, size, "float32", None, None, False, shared)
    condition = shared.encode_prompts(PROMPTS)[range(len(PROMPTS))]
    theirs: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(2, *teacher.image_shape, generator=torch.Generator().manual_seed(0))
    start = noise
    if hasattr(theirs.scheduler, "alphas_cumprod"):
        if not name.startswith("PixArt"):
            theirs.scheduler = diffusers.EulerDiscreteScheduler.from_config(theirs.scheduler.config)
            theirs.scheduler.set_timesteps(STEPS)
        first = teacher.sampling_sigmas(STEPS)[0]  # DDIM starts as its variance preserving process is there
        start = noise * (1 + first**-2) ** 0.5 if name.startswith("PixArt") else (
            noise * float(theirs.scheduler.init_noise_sigma) / first
        )  # fmt: skip
    packs = name in ("FLUX.1", "Qwen-Image")
    height, width = shared.image_size
    images = theirs(
        prompt=list(PROMPTS), height=height, width=width, num_inference_steps=STEPS, output_type="pt",
        latents=theirs._pack_latents(noise, 2, *teacher.image_shape) if packs else noise,
        **CALLS.get(name, {"guidance_scale": GUIDANCE}),
    ).images  # fmt: skip
    ours = (shared.decode(EulerSampler(STEPS)(teacher, start, condition)) / 2 + 0.5).clamp(0, 1)
    assert ours.shape == images.shape and images.std() > 0.05
    torch.testing.assert_close(ours, images, rtol=0, atol=5e-5)
    with torch.no_grad():
        before, level = teacher(noise, torch.ones(2), condition), torch.ones(2)
        add_step_embedding(teacher, 2, "fake_score.step_aware")
        assert isinstance(teacher.step_embedding, StepEmbedding)
        teacher.step_embedding.weight[1] = 1.0
        assert torch.equal(teacher(noise, level, condition), before)
        set_step(teacher, 1)
        assert (teacher(noise, level, condition) - before).abs().amax((1, 2, 3)).min() > 1e-4


def test_latents_of_images_are_those_of_the_pipelines(folder_of: Callable[[str], Path]) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    flux2: Any = diffusers.DiffusionPipeline.from_pretrained(folder_of("FLUX.2 klein"))
    ours = Autoencoder.from_pretrained(folder_of("FLUX.2 klein"))
    latents = ours.encode(images)
    with torch.no_grad():
        torch.testing.assert_close(latents, flux2._encode_vae_image(images, None), rtol=0, atol=1e-5)
    assert latents.shape[1:] == (ours.channels, 32 // ours.downsampling, 32 // ours.downsampling) == (16, 8, 8)

    ours = Autoencoder.from_pretrained(folder_of("Qwen-Image"))
    with torch.no_grad():
        mean = ours.vae.encode(images[:, :, None]).latent_dist.mode()[:, :, 0]
    means, deviations = (torch.tensor(ours.vae.config[f"latents_{name}"])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close(ours.encode(images), (mean - means) / deviations, rtol=0, atol=1e-5)

    ours = Autoencoder.from_pretrained(folder_of("Sana"))
    with torch.no_grad():
        expected = ours.vae.encode(images).latent * 0.41407
    torch.testing.assert_close(ours.encode(images), expected, rtol=0, atol=1e-5)


def test_a_chat_template_of_the_folder_is_not_run(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("Z-Image"), tmp_path / "pipeline")
    (file,) = (folder / "tokenizer").glob("*.jinja")
    file.write_text("{{ raise_exception('run') }}")
    ours, expected = (TextEncoder(place)(["a cat"], (16, 16)) for place in (folder, folder_of("Z-Image")))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_an_older_diffusers_is_told_of_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers, "__version__", "0.35.2")
    with pytest.raises(ValueError, match=r"QwenImageTransformer2DModel needs diffusers 0\.42 or newer, and 0\.35\.2"):
        diffusers_class("QwenImageTransformer2DModel")
    with pytest.raises(ValueError, match="NoPipeline needs diffusers in a newer version"):
        diffusers_class("NoPipeline")
    assert diffusers_class("SanaTransformer2DModel") is diffusers.SanaTransformer2DModel


@pytest.mark.parametrize(
    "family, config, message",
    [
        (Sana(), {"in_channels": 4, "out_channels": 4, "guidance_embeds": True}, "Sana Sprint, a student already"),
        (ZImage(), {"siglip_feat_dim": 8, "all_patch_size": (2,)}, "siglip_feat_dim=8 .* editing are not supported"),
        (QwenImage(), {"in_channels": 64, "out_channels": 16, "zero_cond_t": True}, "zero_cond_t"),
        (QwenImage(), {"in_channels": 132, "out_channels": 16}, "of 132 to 16 channels"),
    ],
)
def test_networks_of_other_tasks_are_refused(family: Family, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family.check(config)


def test_half_precision_keeps_the_length_of_a_prompt() -> None:
    """In bfloat16 257 ones are 256, and 511 are 512: a word of Z-Image would be lost, or padding be read."""
    lengths: list[int] = []

    def network(x: list[Tensor], time: Tensor, text: list[Tensor], return_dict: bool) -> tuple[list[Tensor]]:
        lengths.extend(len(states) for states in text)
        return (x,)

    mask = (torch.arange(512) < torch.tensor([[257], [511]])).bfloat16()
    condition = {"encoder_hidden_states": torch.zeros(2, 512, 1), "encoder_attention_mask": mask}
    ZImage().call(network, torch.zeros(2, 4, 8, 8), torch.zeros(2), condition, 1.0)
    assert lengths == [257, 511]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_where_they_are_in_the_image(name: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """The feature in row 1 and column 2 changes most where a pixel there does, but for a U-Net's wide middle."""
    folder, size = folder_of(name), size_of(name)
    shared = TeacherPipeline(str(folder), size, "float32", 2, str(tmp_path / "cache"))
    teacher = load_diffusers(str(folder), 1.0, size, "float32", None, None, False, shared)
    outputs: list[Any] = []
    teacher.feature_blocks[0].register_forward_hook(lambda _, inputs, output: outputs.append(output))
    before = torch.randn(2, *teacher.image_shape, generator=torch.Generator().manual_seed(0))
    (shape,) = teacher.feature_shapes
    pixels = before.shape[2] // shape[1]
    after = before.clone()
    after[:, :, pixels, 2 * pixels] += 1
    with torch.no_grad():
        for x in (before, after):
            teacher(x, torch.ones(2), shared.encode_prompts(PROMPTS)[range(2)])
    features = [teacher.read_features(output, before) for output in outputs]
    assert [each.shape for each in features] == 2 * [(2, *shape)]
    change = (features[1] - features[0]).abs().sum(1)
    if name not in ("Stable Diffusion 1.5", "SDXL"):
        assert (change.flatten(1).argmax(1) == shape[2] + 2).all()
        assert (change.flatten(1).amax(1) > 5 * change.flatten(1).median(1).values).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_distil(name: str, config_of: Configure, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    distill(config_of(name, tmp_path / "run"))
    weights = load_file(tmp_path / "run" / "generator" / "diffusion_pytorch_model.safetensors")
    teacher = load_diffusers(str(folder_of(name)), 1.0, size_of(name), "float32", None, None, False)
    changes = [(weights[key] - value).abs().max().item() for key, value in teacher.named_parameters()]
    assert 1e-3 < max(changes) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_lora(name: str, lora_run: Callable[[str], Path], folder_of: Callable[[str], Path]) -> None:
    weights = load_file(lora_run(name) / "generator" / "diffusion_pytorch_model.safetensors")
    teacher = load_diffusers(str(folder_of(name)), 1.0, size_of(name), "float32", None, None, False).state_dict()
    base = {key.replace(".base_layer", ""): value for key, value in weights.items() if ".lora_" not in key}
    assert base.keys() == teacher.keys() and all(torch.equal(base[key], teacher[key]) for key in base)
    assert max(value.abs().max().item() for key, value in weights.items() if ".lora_B." in key) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_resume(name: str, lora_run: Callable[[str], Path], config_of: Configure, tmp_path: Path) -> None:
    first = lora_run(name) / "checkpoints" / "iteration_00000001"
    distill(config_of(name, tmp_path / "resumed", *LORA, f"resume={first}"))
    assert_same_checkpoint(
        *(run / "checkpoints" / "iteration_00000002" for run in (lora_run(name), tmp_path / "resumed"))
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_export(name: str, exported: Callable[[str], Path], folder_of: Callable[[str], Path]) -> None:
    folder = exported(name)
    ours, theirs = (diffusers.DiffusionPipeline.load_config(place) for place in (folder, folder_of(name)))
    assert ours["_class_name"] == theirs["_class_name"]
    assert {file.suffix for file in folder.rglob("*") if file.is_file()} <= {
        ".safetensors", ".json", ".md", ".txt", ".png", ".model", ".jinja",
    }  # fmt: skip
    assert (folder / "pytorch_lora_weights.safetensors").exists() != name.startswith("PixArt")
    renamed = name in ("Stable Diffusion 1.5", "SDXL", "Lumina 2")
    assert (folder / "comfyui_lora_weights.safetensors").exists() == renamed


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_elsewhere(name: str, exported: Callable[[str], Path], lora_run: Callable[[str], Path], tmp_path: Path) -> None:
    """The card's code, in a process that cannot import this package, draws what sample.py draws: to 8 bits."""
    code = ModelCard.load(exported(name) / "README.md").text.split("```python\n")[1].split("```")[0]
    code = code.split("\n\n\n# The same")[0].replace("a photo of a cat", PROMPTS[SEED % 2])
    code = code.replace("manual_seed(0)", f"manual_seed({SEED})").replace(
        "\n).images", '\n    output_type="np",\n).images'
    )
    script = f"import sys\nsys.modules['onestep'] = None\n{code}\nimport numpy\nnumpy.save('theirs.npy', images[0])\n"
    (exported(name).parent / f"{name}.py").write_text(script)
    command = [sys.executable, f"{name}.py"]
    run = subprocess.run(command, cwd=exported(name).parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    sample(
        configure("sample", f"run={lora_run(name)}", f"seed={SEED}", "count=1", "format=npz", f"save_to={tmp_path}/out")
    )
    (file,) = (tmp_path / "out").rglob("*.npz")
    ours, theirs = next(iter(np.load(file).values()))[0], np.load(exported(name).parent / "theirs.npy")
    assert ours.shape == theirs.shape and ours.std() > 5
    assert np.abs(ours.astype(float) - (theirs * 255).round()).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in WITHOUT_GRAPH])
def test_onnx(name: str, lora_run: Callable[[str], Path], tmp_path: Path) -> None:
    """One graph of student and decoder, for a batch larger than those that the export compares."""
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    graph = Deployment(str(lora_run(name)), [f"prompts={PROMPTS}"]).graph
    export_graph(graph, "onnx", "float32", tmp_path / "new")
    inputs = graph.inputs(range(70))
    with torch.no_grad():
        expected = graph(*inputs.values())
    images = onnx_runner(tmp_path / "new" / "model.onnx")(inputs)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.05


@pytest.mark.parametrize("name", WITHOUT_GRAPH)
def test_a_network_without_a_graph_is_refused(name: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    network = load_diffusers(str(folder_of(name)), 1.0, size_of(name), "float32", None, None, False)
    mask = torch.ones(2, 5)
    conditions: Any = {"encoder_hidden_states": torch.zeros(2, 5, 12), "encoder_attention_mask": mask}
    inputs = (torch.zeros(2, *network.image_shape), torch.ones(2), conditions)
    with pytest.raises(ValueError, match=r"Transformer2DModel cuts each prompt .* export it as diffusers or"):
        torch.export.export(network, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Stable Diffusion 1.5", "SDXL", "SD3", "FLUX.1"])
def test_a_lora_combines_with_another(
    name: str, exported: Callable[[str], Path], folder_of: Callable[[str], Path]
) -> None:
    """In plain diffusers: the weights of both adapters are the teacher's with the sum of both changes."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder_of(name))
    network, part = (pipeline.unet, "unet") if hasattr(pipeline, "unet") else (pipeline.transformer, "transformer")
    before = {key: value.clone() for key, value in network.named_parameters()}
    merged = dict(getattr(diffusers.DiffusionPipeline.from_pretrained(exported(name)), part).named_parameters())
    ours = load_file(exported(name) / "pytorch_lora_weights.safetensors")
    rng = torch.Generator().manual_seed(0)
    other = {key: 0.1 * torch.randn(value.shape, generator=rng) for key, value in ours.items()}
    pipeline.load_lora_weights(ours, adapter_name="steps")
    pipeline.load_lora_weights(dict(other), adapter_name="style")
    pipeline.set_adapters(["steps", "style"])
    pipeline.fuse_lora(adapter_names=["steps", "style"])
    pipeline.unload_lora_weights()
    fused = dict(network.named_parameters())
    layers = [key.removesuffix(".lora_A.weight").removeprefix(f"{part}.") for key in ours if ".lora_A." in key]
    assert layers
    for layer in layers:
        key, place = f"{layer}.weight", f"{part}.{layer}"
        style = other[f"{place}.lora_B.weight"] @ other[f"{place}.lora_A.weight"]
        steps = merged[key] - before[key]
        assert steps.abs().max() > 1e-4 and style.abs().max() > 1e-2
        torch.testing.assert_close(fused[key], before[key] + steps + style, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Stable Diffusion 1.5", "SDXL"])
def test_the_file_for_comfyui_is_the_same_change(
    name: str, exported: Callable[[str], Path], folder_of: Callable[[str], Path]
) -> None:
    """By diffusers' converter of Kohya's names, and the folder alone is still read by diffusers' own."""
    found = []
    for weight_name in ("comfyui_lora_weights.safetensors", None):
        pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(folder_of(name))
        pipeline.load_lora_weights(exported(name), weight_name=weight_name)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        found.append(dict(pipeline.unet.named_parameters()))
    merged = dict(diffusers.DiffusionPipeline.from_pretrained(exported(name)).unet.named_parameters())
    for weights in found:
        torch.testing.assert_close(weights, merged, rtol=0, atol=1e-6)

"""The ways in which people store pipelines: each is read as the same teacher, or refused with what mends it."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onestep.build.checks import check_steps
from onestep.config import instantiate
from onestep.models.diffusers.export import save_text_to_image
from onestep.models.diffusers.folder import quiet
from onestep.models.generator import Generator
from tests.helpers.configs import configure
from tests.helpers.paths import REPOSITORY
from tests.helpers.single_files import save_single_file

WEIGHTS = "diffusion_pytorch_model"
PROMPTS = ["a cat", "red"]
Change = Callable[[Path], Any]


class Row(NamedTuple):
    """A way of storing: what it makes of a plain pipeline's folder, the settings that read it, and what comes of it."""

    change: Change
    settings: tuple[str, ...] = ()
    refused: str | None = None
    warned: str = ""
    kinds: tuple[str, ...] = ("sd",)
    tolerance: float = 0.0  # of weights in half precision
    zeros: int = 0  # the last embeddings that a missing encoder leaves zero, so that the images are others


def saved(**options: Any) -> Change:
    """The pipeline saved again by diffusers."""

    def change(folder: Path) -> None:
        with quiet():
            pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
            shutil.rmtree(folder)
            pipeline.to(options.pop("dtype", torch.float32)).save_pretrained(folder, **options)

    return change


def without(name: str) -> Change:
    """The folder of a component is missing, though the index names it."""
    return lambda folder: shutil.rmtree(folder / name)


def indexed(**entries: Any) -> Change:
    """The index with other entries."""

    def change(folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | entries))

    return change


def unindexed(name: str) -> Change:
    """The index does not name the component."""

    def change(folder: Path) -> None:
        shutil.rmtree(folder / name)
        index = json.loads((folder / "model_index.json").read_text())
        del index[name]
        (folder / "model_index.json").write_text(json.dumps(index))

    return change


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def doubled(folder: Path) -> None:
    """Weights of the default beside those of the variant, as on the hub."""
    plain = shutil.copytree(folder, folder.with_name("plain"))
    saved(dtype=torch.float16, variant="fp16")(folder)
    shutil.copytree(plain, folder, dirs_exist_ok=True)


def wrapped(folder: Path) -> None:
    """The network was saved while it was compiled, and its blocks in wrappers."""
    file = folder / "unet" / f"{WEIGHTS}.safetensors"
    weights = load_file(file)
    file.unlink()
    save_file({f"module._orig_mod.{name}".replace("attentions", "_orig_mod.attentions"): value
               for name, value in weights.items()}, file)  # fmt: skip


def moved_scheduler(folder: Path) -> None:
    shutil.copytree(folder / "scheduler", folder.with_name("elsewhere"))
    shutil.rmtree(folder / "scheduler")


def single(folder: Path) -> None:
    """All weights in one file, and the folder with the configs and tokenizers alone."""
    save_single_file(folder, folder.with_name("model.safetensors"))
    for file in folder.glob("*/*.safetensors"):
        file.unlink()


HALF = "{root}/pipeline/unet: its weights are of the variant fp16 alone: read"
ROWS = {
    "as diffusers saves it": Row(lambda _: None, kinds=("sd", "sdxl", "sd3", "flux")),
    "shards": Row(saved(max_shard_size="20KB"), kinds=("sd", "sdxl", "sd3")),
    "float16 under the default's name": Row(saved(dtype=torch.float16), tolerance=2e-3),
    "`*.fp16.safetensors` alone": Row(
        saved(dtype=torch.float16, variant="fp16"), warned=HALF, kinds=("sd", "sdxl"), tolerance=2e-3
    ),
    "the same, `teacher.variant=fp16`": Row(
        saved(dtype=torch.float16, variant="fp16"), ("teacher.variant=fp16",), kinds=("sd", "sdxl"), tolerance=2e-3
    ),
    "shards of a variant": Row(
        saved(dtype=torch.float16, variant="fp16", max_shard_size="20KB"), warned=HALF, tolerance=2e-3
    ),
    "both, `teacher.variant=fp16`": Row(doubled, ("teacher.variant=fp16",), tolerance=2e-3),
    "several variants alone": Row(
        both(saved(variant="fp16"), lambda folder: shutil.copy(
            folder / "unet" / f"{WEIGHTS}.fp16.safetensors", folder / "unet" / f"{WEIGHTS}.bf16.safetensors")),
        refused="of the variants bf16, fp16 alone: set teacher.variant=bf16",
    ),
    "`.bin` alone": Row(saved(safe_serialization=False), refused="make safetensors of it by python -c"),
    "no scheduler": Row(without("scheduler"), refused="lacks its scheduler, .* or teacher.scheduler=FILE"),
    "a scheduler elsewhere, `teacher.scheduler=...`": Row(moved_scheduler, ("teacher.scheduler={root}/elsewhere",)),
    "no scheduler in its index": Row(unindexed("scheduler"), refused="lacks its scheduler"),
    "no safety checker where its index names one": Row(
        indexed(safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]),
        warned="{root}/pipeline is read without safety_checker",
    ),
    "SD3 without its third encoder": Row(
        both(without("text_encoder_3"), without("tokenizer_3")),
        warned="{root}/pipeline is read without text_encoder_3, tokenizer_3", kinds=("sd3",), zeros=256,
    ),
    "the same, unknown to its index": Row(
        both(unindexed("text_encoder_3"), unindexed("tokenizer_3")), kinds=("sd3",), zeros=256
    ),
    "prefixes of compiled and wrapped networks": Row(wrapped),
    "a single `.safetensors`, `teacher.config=...`": Row(
        single, ("teacher.path={root}/model.safetensors", "teacher.config={root}/pipeline"), tolerance=1e-6
    ),
    "a single `.ckpt`": Row(
        lambda folder: torch.save({"state_dict": {}}, folder.with_name("model.ckpt")),
        ("teacher.path={root}/model.ckpt", "teacher.config={root}/pipeline"),
        refused="becomes a folder, where it may run code, by python -c",
    ),
    "a single `.safetensors` alone": Row(
        single, ("teacher.path={root}/model.safetensors",), refused="teacher.config=BASE"
    ),
}  # fmt: skip
CASES = [
    pytest.param(name, kind, id=f"{name}, {kind}", marks=() if kind == row.kinds[0] else pytest.mark.slow)
    for name, row in ROWS.items()
    for kind in row.kinds
]


def read(folder: Path, *settings: str) -> Any:
    """The teacher of the configuration of a training."""
    cache = folder.parent / "cache"
    overrides = ("teacher=diffusers", f"teacher.path={folder}", f"teacher.pipeline.cache={cache}", "teacher.size=8")
    return instantiate(configure("train", *overrides, *settings).teacher)


@torch.no_grad()
def predictions(teacher: Any) -> list[Tensor]:
    """x0 [2, ...], the images that it decodes to, and the embeddings of prompts."""
    condition = teacher.pipeline.encode_prompts(PROMPTS)[[0, 1]]
    noise = torch.randn(2, *teacher.image_shape, generator=torch.Generator().manual_seed(0))
    x0 = teacher(2.0 * noise, torch.full((2,), 2.0), condition)
    return [x0, teacher.pipeline.decode(x0), *condition.values()]


@pytest.fixture(scope="module")
def plain(pipelines: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Tensor]]:
    """The predictions of the plain pipeline of a kind."""
    found: dict[str, list[Tensor]] = {}

    def of(kind: str) -> list[Tensor]:
        if kind not in found:
            folder = shutil.copytree(pipelines(kind), tmp_path_factory.mktemp("plain") / kind)
            found[kind] = predictions(read(folder))
        return found[kind]

    return of


@pytest.mark.parametrize("name, kind", CASES)
def test_a_way_of_storing(
    name: str, kind: str, pipelines: Callable[[str], Path], plain: Callable[[str], list[Tensor]], tmp_path: Path
) -> None:
    row, folder = ROWS[name], tmp_path / "pipeline"
    shutil.copytree(pipelines(kind), folder)
    row.change(folder)
    settings = [setting.format(root=tmp_path) for setting in row.settings]
    if row.refused is not None:
        with pytest.raises(ValueError, match=row.refused):
            read(folder, *settings)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        teacher = read(folder, *settings)
        ours = predictions(teacher)
    said = [str(warning.message) for warning in caught]
    assert any(one.startswith(row.warned.format(root=tmp_path)) for one in said) or not row.warned
    theirs = plain(kind)
    if row.zeros:
        ours[2][:, : -row.zeros] -= theirs[2][:, : -row.zeros]
        assert not ours[2].any() and torch.equal(ours[3], theirs[3])
    else:
        for result, expected in zip(ours, theirs, strict=True):
            assert (result - expected).abs().max() <= row.tolerance * expected.abs().max()
    check_export(teacher, tmp_path / "export")


def check_export(teacher: Any, output: Path) -> None:
    """The export holds nothing twice, and plain diffusers opens it."""
    output.mkdir()
    generator, pipeline = Generator(teacher, teacher.sigma_max), teacher.pipeline
    usage = save_text_to_image(generator, pipeline.folder, output, pipeline.variant)
    absent: dict[str, Any] = dict.fromkeys(re.findall(r" (\w+)=None[,)]", usage.split("\n\n")[1]))
    for part in (path for path in output.iterdir() if path.is_dir()):
        tensors = [name for file in part.glob("*.safetensors") for name in load_file(file)]
        assert len(tensors) == len(set(tensors))
        assert not list(part.glob("*.fp16*"))
    with quiet():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(output, **absent)
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert set(networks) == {path.name for path in output.iterdir() if (path / "config.json").exists()}


def save_lora(folder: Path, file: Path) -> Any:
    """Write a random LoRA of the network and the text encoder; it is active in the pipeline that this returns."""
    with quiet():
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    layers, random = {}, torch.Generator().manual_seed(0)
    for name, targets in (("unet", ["to_q", "to_v"]), ("text_encoder", ["q_proj", "v_proj"])):
        network = getattr(pipeline, name)
        network.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets))
        for parameter in (value for key, value in network.named_parameters() if "lora_B" in key):
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=random)
        layers[f"{name}_lora_layers"] = peft.get_peft_model_state_dict(network)
    pipeline.save_lora_weights(file.parent, weight_name=file.name, **layers)
    return pipeline


def test_a_lora_is_merged(
    pipelines: Callable[[str], Path], plain: Callable[[str], list[Tensor]], tmp_path: Path
) -> None:
    folder, file = shutil.copytree(pipelines("sd"), tmp_path / "pipeline"), tmp_path / "style.safetensors"
    pipeline = save_lora(folder, file)
    with pytest.raises(ValueError, match=f"is a LoRA.*teacher.path=BASE teacher.lora={file}"):
        read(file)
    teacher = read(folder, f"teacher.lora={file}")
    x0, _, text = predictions(teacher)
    with torch.no_grad():
        embeddings, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
        x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([10, 900])
        expected = pipeline.unet(x, t, embeddings).sample
        torch.testing.assert_close(teacher.network(x, t, text).sample, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text, embeddings, rtol=1e-5, atol=1e-5)
    assert (x0 - plain("sd")[0]).abs().max() > 1e-2 and (text - plain("sd")[2]).abs().max() > 1e-2
    check_export(teacher, tmp_path / "export")
    assert read(folder, f"teacher.lora={file}").pipeline.folder == teacher.pipeline.folder  # made once


def test_a_lora_of_another_network(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    save_file({"transformer.x.lora_A.weight": torch.ones(2, 4), "transformer.x.lora_B.weight": torch.ones(4, 2)},
              tmp_path / "other.safetensors")  # fmt: skip
    with pytest.raises(
        ValueError, match="teacher.lora=.*other.safetensors: no pipeline could be made of it .*none of its"
    ):
        read(pipelines("sd"), f"teacher.lora={tmp_path / 'other.safetensors'}", f"teacher.pipeline.cache={tmp_path}")
    assert not list(tmp_path.glob("pipelines/*"))


@torch.no_grad()
def test_a_student_of_edms_schedule_is_drawn_by_plain_diffusers(
    pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    """As Playground 2.5's, an SDXL whose scheduler is EDM's."""
    folder = shutil.copytree(pipelines("sdxl"), tmp_path / "pipeline")
    diffusers.EDMEulerScheduler(sigma_schedule="exponential").save_pretrained(folder / "scheduler")
    indexed(scheduler=["diffusers", "EDMEulerScheduler"])(folder)
    teacher = read(folder)
    with pytest.raises(ValueError, match="2 steps: EDM's schedulers .* set generator.later_sigmas="):
        check_steps(Generator(teacher, 20.0, [1.0]))
    generator = Generator(teacher, 20.0).eval()
    check_export(teacher, tmp_path / "teacher")
    (tmp_path / "export").mkdir()
    save_text_to_image(generator, folder, tmp_path / "export")
    with quiet():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "export")
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"height": 16, "width": 16, "num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    theirs = pipeline(PROMPTS, latents=noise.clone(), **options).images
    ours = generator(noise, teacher.pipeline.encode_prompts(PROMPTS)[[0, 1]])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_command_for_pickles_makes_what_is_read(
    pipelines: Callable[[str], Path], plain: Callable[[str], list[Tensor]], tmp_path: Path
) -> None:
    shutil.copytree(pipelines("sd"), tmp_path / "pipeline")
    saved(safe_serialization=False)(tmp_path / "pipeline")
    with pytest.raises(ValueError) as caught:
        read(tmp_path / "pipeline")
    (code,) = re.findall('python -c "(.*)"', str(caught.value))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    for result, expected in zip(predictions(read(tmp_path / "NEW")), plain("sd"), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_the_documentation_has_every_row() -> None:
    text = (REPOSITORY / "docs" / "teachers.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]*) \| (read|refused)", text, flags=re.M))
    assert {name: "read" if row.refused is None else "refused" for name, row in ROWS.items()} == rows

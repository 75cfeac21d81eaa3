"""Folders and files of models that would run code, fill the memory or never end: each is refused in one line."""

import json
import os
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from onestep.models.diffusers.autoencoder import Autoencoder
from onestep.models.diffusers.loading import load_diffusers
from onestep.models.diffusers.text_encoder import TextEncoder
from onestep.models.edm.checkpoint import load_edm
from onestep.models.generator import Generator, load_denoiser
from onestep.models.loading import load_generator, load_teacher
from tests.helpers.diffusers_models import build_denoiser, build_network
from tests.helpers.edm_format import Raw, pickled
from tests.helpers.edm_models import tiny_denoiser
from tests.helpers.tiny_pipelines import vae

WEIGHTS = "diffusion_pytorch_model.safetensors"
Change = Callable[[Path], Any]


class Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm_was_done"),)


def edited(file: str, **changes: Any) -> Change:
    """Sets keys of a JSON file; dots are of nested keys."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        for key, value in changes.items():
            *outer, last = key.split("__")
            inner = content
            for name in outer:
                inner = inner[name]
            inner[last] = value
        (folder / file).write_text(json.dumps(content))

    return change


def replaced(file: str, text: str) -> Change:
    return lambda folder: (folder / file).write_text(text)


def reweighted(change: Callable[[dict[str, torch.Tensor]], Any], file: str = WEIGHTS) -> Change:
    def apply(folder: Path) -> None:
        weights = load_file(folder / file)
        (folder / file).unlink()  # a mapping of the old one may be alive
        save_file(change(weights), folder / file)

    return apply


def with_first(weights: dict[str, torch.Tensor], value: Any) -> dict[str, torch.Tensor]:
    """The weights with ``value`` of the first tensor in its place."""
    name = min(weights)
    return {**weights, name: value(weights[name])}


def indexed(name: str) -> Change:
    """The weights' index names the shard ``name``, a pickle that would run."""

    def change(folder: Path) -> None:
        (folder / "unet" / WEIGHTS).unlink()
        (folder / "unet" / "weights.bin").write_bytes(pickle.dumps(Harmful()))
        (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"conv_in.bias": name}}))

    return change


def special(file: str, kind: str) -> Change:
    """The file is a pipe, a link to a device, or a hole of gigabytes."""

    def change(folder: Path) -> None:
        path = folder / file
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            with path.open("wb") as hole:
                hole.truncate(3 << 30)

    return change


def headed(length: int, header: dict[str, Any]) -> Change:
    """A safetensors file of a stated header."""
    return lambda folder: (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + json.dumps(header).encode())


def deep(file: str) -> Change:
    return replaced(file, '{"a":' * 5000 + "1" + "}" * 5000)


PETABYTES = {"a": {"dtype": "F32", "shape": [1 << 50], "data_offsets": [0, 1 << 52]}}
SCHEDULER = "scheduler/scheduler_config.json"
OWN: dict[str, tuple[Change, str]] = {
    "a class of another module": (edited("config.json", _class_name="os.system"), "describes a os.system, expected"),
    "a class in a list": (edited("config.json", _class_name=["x"]), "describes a .'x'., expected one of"),
    "a list for a config": (replaced("config.json", "[]"), "config.json: "),
    "too deep": (deep("config.json"), "config.json: no JSON"),
    "text for a number": (edited("config.json", sigma_min="0.1"), "config.json: sigma_min="),
    "a flag for a number": (edited("config.json", label_dim=True), "config.json: label_dim=True"),
    "no noise": (edited("config.json", sigma_min=-1.0), "config.json: sigma_min=-1.0: expected"),
    "blocks without end": (edited("config.json", options__num_blocks=10**9), "num_blocks=1000000000: expected at most"),
    "many blocks": (edited("config.json", options__num_blocks=10**6), "num_blocks=1000000: expected an integer"),
    "wide": (edited("config.json", options__model_channels=2**20), "no network|do not fit config.json"),
    "negative width": (edited("config.json", options__model_channels=-8), "no network"),
    "a number of 40 digits": (edited("config.json", label_dim=10**40), "config.json: label_dim="),
    "petabytes": (headed(len(json.dumps(PETABYTES)), PETABYTES), "a damaged file"),
    "a header of petabytes": (headed(1 << 50, PETABYTES), "a damaged file"),
    "whole numbers": (reweighted(lambda w: with_first(w, lambda t: t.to(torch.int64))), "is of dtype I64"),
    "flags": (reweighted(lambda w: with_first(w, lambda t: t.bool())), "is of dtype BOOL"),
    "not a number": (reweighted(lambda w: with_first(w, lambda t: t * torch.nan)), "the weight model.*is not finite"),
    "infinite": (reweighted(lambda w: with_first(w, lambda t: t + torch.inf)), "the weight model.*is not finite"),
    "names that become one": (
        reweighted(lambda w: {**w, f"_orig_mod.{min(w)}": w[min(w)].clone()}), "names differ by a prefix alone",
    ),
    "a pipe": (special(WEIGHTS, "pipe"), "expected a file, not a folder, a pipe or a device"),
    "a device": (special(WEIGHTS, "device"), "expected a file, not a folder, a pipe or a device"),
    "a hole": (special(WEIGHTS, "hole"), "most of them were never written"),
    "a config of a device": (special("config.json", "device"), "no checkpoint at"),
}  # fmt: skip
PIPELINE: dict[str, tuple[Change, str]] = {
    "a shard that is a pickle": (indexed("weights.bin"), "expected a .safetensors file in its folder"),
    "a shard outside": (indexed("../../x.safetensors"), "expected a .safetensors file in its folder"),
    "code of the pipeline's": (edited("model_index.json", _class_name=["pipeline", "Model"]), "own is not run"),
    "a module as its class": (edited("model_index.json", _class_name="os.path"), "own is not run"),
    "a module of a component": (edited("model_index.json", unet=["unet", "UNet2DModel"]), "own is not run"),
    "a component outside": (edited("model_index.json", **{"../x": ["diffusers", "UNet2DModel"]}), "own is not run"),
    "a list for an index": (replaced("model_index.json", "[]"), "model_index.json: "),
    "a deep index": (deep("model_index.json"), "model_index.json: no JSON"),
    "a map to code": (edited("unet/config.json", auto_map={"AutoModel": "x.Model"}), "config.json has auto_map"),
    "quantisation": (edited("unet/config.json", quantization_config={}), "has quantization_config"),
    "layers without end": (edited("unet/config.json", layers_per_block=10**9), "layers_per_block=1000000000"),
    "many layers": (edited("unet/config.json", layers_per_block=10**6), "more layers than the weights"),
    "no layers": (edited("unet/config.json", block_out_channels=[]), "describes no network"),
    "text for channels": (edited("unet/config.json", in_channels="3"), "describes no network|do not fit"),
    "a size of 0": (edited("unet/config.json", sample_size=0), "multiples of 2, and not 0x0"),
    "a size that cannot be halved": (edited("unet/config.json", sample_size=17), "multiples of 2, and not 17x17"),
    "steps without end": (edited(SCHEDULER, num_train_timesteps=10**9), "num_train_timesteps="),
    "a step": (edited(SCHEDULER, num_train_timesteps=1), "num_train_timesteps=1: expected 2"),
    "noise that does not rise": (edited(SCHEDULER, beta_start=-0.5), "noise levels of DDPMScheduler do not increase"),
    "a schedule of text": (edited(SCHEDULER, beta_start="x"), "scheduler DDPMScheduler describes none"),
    "no scheduler": (edited(SCHEDULER, _class_name="UNet2DModel"), "expected a scheduler of diffusers"),
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "pipeline"
    diffusers.DDPMPipeline(build_network("unet"), diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def copied(source: Path, target: Path) -> Path:
    """A copy whose files may be replaced."""
    for file in source.rglob("*"):
        if file.is_file():
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return target


def refused(read: Callable[[Path], Any], folder: Path, message: str) -> None:
    """Checks that ``read`` refuses ``folder`` in one line and soon, and that nothing was run."""
    began = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        read(folder)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1500 and time.monotonic() - began < 10
    assert not Path("harm_was_done").exists()


@pytest.mark.parametrize("name", OWN)
def test_a_folder_of_the_package(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "network"
    tiny_denoiser(model_channels=4).save_pretrained(folder)
    change, message = OWN[name]
    change(folder)
    refused(load_denoiser, folder, message)


@pytest.mark.parametrize("name", PIPELINE)
def test_a_pipeline(name: str, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copied(pipeline, tmp_path / "pipeline")
    change, message = PIPELINE[name]
    change(folder)
    refused(lambda path: load_diffusers(str(path), 1.0, None, "float32", None, None, True), folder, message)


@pytest.mark.parametrize("targets", ["(.*)*x", ["(a+)+$", 3], []])
def test_layers_of_a_change_are_names(targets: Any, tmp_path: Path) -> None:
    build_denoiser("sd", diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    edited("config.json", lora={"rank": 2, "alpha": 2.0, "targets": targets})(tmp_path)
    refused(load_denoiser, tmp_path, "describes no network: lora: rank=2")


TEXT: dict[str, tuple[Change, str]] = {
    "a map to code": (edited("text_encoder/config.json", auto_map={"AutoModel": "x.M"}), "has auto_map"),
    "kernels of the hub": (edited("text_encoder/config.json", _attn_implementation="x/y"), "has _attn_implementation"),
    "layers without end": (edited("text_encoder/config.json", num_hidden_layers=10**6), "more layers than the weights"),
    "an adapter": (replaced("text_encoder/adapter_config.json", "{}"), "names another model"),
    "a class": (edited("model_index.json", text_encoder=["transformers", "AutoModel"]), "AutoModel is not supported"),
    "a tokenizer": (edited("model_index.json", tokenizer=["transformers", "pipeline"]), "pipeline is not supported"),
    "code of a tokenizer": (edited("tokenizer/tokenizer_config.json", auto_map={"x": "y"}), "has auto_map"),
    "a prefix": (
        reweighted(lambda w: {f"x.{k}": v for k, v in w.items()}, "text_encoder/model.safetensors"), "weights lack",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXT)
def test_text_encoders(name: str, pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(pipelines("sd"), tmp_path / "sd")
    change, message = TEXT[name]
    change(folder)
    refused(TextEncoder, folder, message)


@pytest.mark.parametrize(
    "change, message",
    [
        (edited("model_index.json", vae=["diffusers", "AutoencoderOobleck"]), "found AutoencoderOobleck"),
        (edited("vae/config.json", scaling_factor=0), "scaling_factor=0"),
        (edited("vae/config.json", layers_per_block=10**6), "more layers than the weights"),
    ],
)
def test_autoencoders(change: Change, message: str, tmp_path: Path) -> None:
    vae().save_pretrained(tmp_path / "vae")
    index = {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    change(tmp_path)
    refused(Autoencoder.from_pretrained, tmp_path, message)


def repeated(name: str, arguments: bytes) -> bytes:
    """A pickle of a megabyte that calls ``name`` again and again with arguments that it holds once."""
    call = b"ctorch._utils\n" + name.encode() + b"\nq\x40" + arguments + b"q\x41"
    return b"\x80\x04](" + call + b"R" + b"h\x40h\x41R" * 50_000 + b"e."


def many(count: int) -> bytes:
    """A tuple of ``count`` zeros."""
    return b"(" + b"K\x00" * count + b"t"


@pytest.mark.parametrize(
    "content, message",
    [
        (repeated("_rebuild_parameter", many(100_000)), "with 100,000 arguments: refused"),
        (repeated("_rebuild_tensor_v2", b"(NK\x00" + many(100_000) + many(100_000) + b"t"), "cannot be read"),
        (
            b"\x80\x04}q\x00(" + b"".join(b"X\x06\x00\x00\x00" + b"%06d" % i + b"N" for i in range(20_000)) + b"uq\x00"
            b"(" + b"ctorch.nn.modules.container\nModuleDict\n)Rh\x00b" * 60 + b"t.", "more than 1,000,000 attributes",
        ),
        (pickled({"model": {"x": Raw(b"N")}}), "found 0 among model"),
    ],
)  # fmt: skip
def test_pickles_that_work_without_end(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "in.pkl").write_bytes(content)
    refused(load_edm, tmp_path / "in.pkl", message)


def test_what_is_no_folder_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_denoiser(model_channels=4).save_pretrained(tmp_path / "own")
    save_file({"model.diffusion_model.x": torch.zeros(1)}, tmp_path / "single.safetensors")
    (tmp_path / "lora").mkdir()
    save_file({"unet.to_q.lora_A.weight": torch.zeros(1)}, tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    (tmp_path / "empty.ckpt").touch()
    with (tmp_path / "large.ckpt").open("wb") as hole:
        hole.truncate(3 << 30)
    readers: list[Callable[[Path], Any]] = [
        lambda path: load_diffusers(str(path), 1.0, None, "float32", None, None, True),
        lambda path: load_teacher(str(path)),
        lambda path: load_generator(path, 2.5),
        load_edm,
    ]
    for path, message in (
        ("single.safetensors", "a single file of 1 tensors, such as model.diffusion_model.x, .*teacher.config=BASE"),
        ("lora", "is a LoRA, a change of another network: .*teacher.lora=lora"),
        ("empty.ckpt", "is empty: copy or download it again"),
        ("large.ckpt", "3,221,225,472 bytes, and most of them were never written"),
        (f"own/{WEIGHTS}", "the weights of the network in own: give that folder"),
    ):
        for read in readers:
            refused(read, Path(path), message)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str, pipeline: Path, tmp_path: Path) -> None:
    own = tiny_denoiser(model_channels=4)
    own.save_pretrained(tmp_path / "own")
    copied(pipeline, tmp_path / "pipeline")
    for folder in (tmp_path / "own", tmp_path / "pipeline" / "unet"):
        reweighted(lambda weights: {prefix + name: value for name, value in weights.items()})(folder)
    torch.testing.assert_close(load_denoiser(tmp_path / "own").state_dict(), own.state_dict(), rtol=0, atol=0)
    read = load_diffusers(str(tmp_path / "pipeline"), 1.0, None, "float32", None, None, True).network.state_dict()
    torch.testing.assert_close(read, load_file(pipeline / "unet" / WEIGHTS), rtol=0, atol=0)


def test_weights_that_do_not_fit_are_not_all_listed(tmp_path: Path) -> None:
    Generator(tiny_denoiser(model_channels=4), 2.5).save_pretrained(tmp_path)
    reweighted(lambda weights: {f"other.{name}": value for name, value in weights.items()})(tmp_path)
    with pytest.raises(ValueError, match=r"do not fit config.json: \d+ tensors differ, such as ") as caught:
        Generator.from_pretrained(tmp_path)
    assert len(str(caught.value)) < 600

"""The readers of files from others, each with seeds to damage."""

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn

from onestep.build.recorded import Parts
from onestep.config import compose
from onestep.engine.course import Course, changes_since, course_of
from onestep.engine.log import read_log
from onestep.engine.optimizer import GuardedOptimizer
from onestep.engine.state import TrainingState
from onestep.export.model_card import write_card
from onestep.metrics.classifier import Classifier, load_classifier
from onestep.metrics.statistics import Moments
from onestep.models.edm.checkpoint import load_edm
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator
from onestep.models.loading import load_generator
from onestep.reports.compare import to_table
from tests.helpers.edm_format import pickled, snapshot
from tests.helpers.edm_models import tiny_denoiser
from tests.stress.data_readers import DATA_READERS
from tests.stress.mutations import mutate_bytes, mutate_json, mutate_safetensors, mutate_values, mutate_zip
from tests.stress.reader import Reader


def _records() -> list[bytes]:
    return [
        OmegaConf.to_yaml(compose("train", [*overrides, "output=x"]), resolve=True).encode()
        for overrides in (
            ["experiment=digits"], ["experiment=mixture"], ["experiment=benchmark/cifar10_uncond", "data.path=a.zip"],
            ["experiment=text_to_image", "teacher=sd15", "data.path=[a,b]"],
            ["teacher=diffusers", "teacher.path=x", "data=latents", "data.images.path=z"],
        )
    ]  # fmt: skip


def _mutate_yaml(content: bytes, random: Random) -> bytes:
    if random.random() < 0.3:
        return mutate_bytes(content, random)
    return yaml.safe_dump(mutate_values(yaml.safe_load(content), random)).encode()


def record(folder: Path) -> Reader:
    config = compose("sample", [f"run={folder}"])

    def read() -> None:
        parts = Parts(config)
        for name in ("teacher", "sampler", "data", "features"):
            parts[name]

    return Reader(folder / "config.yaml", _records(), read, _mutate_yaml)


def card(folder: Path) -> Reader:
    made, output = Generator(tiny_denoiser(), 2.5), folder / "card"
    output.mkdir()
    (folder / "summary.json").write_bytes(_summary())

    def read() -> None:
        write_card(folder, output, made, "ema", "usage")

    return Reader(folder / "config.yaml", _records(), read, _mutate_yaml)


def generator(name: str, folder: Path) -> Reader:
    Generator(tiny_denoiser(), 2.5, [0.5]).save_pretrained(folder)
    mutate = mutate_safetensors if name.endswith(".safetensors") else mutate_json
    return Reader(folder / name, [(folder / name).read_bytes()], lambda: Generator.from_pretrained(folder), mutate)


def pipeline(folder: Path) -> Reader:
    Generator(tiny_denoiser(), 2.5).save_pretrained(folder / "denoiser")
    seeds = [json.dumps({"_class_name": "OneStepPipeline", "sigma_init": 2.5, "later_sigmas": [1.0]}).encode()]
    return Reader(folder / "model_index.json", seeds, lambda: load_generator(folder), mutate_json)


def checkpoint(name: str, folder: Path) -> Reader:
    """A file of a checkpoint, whose manifest says that it is whole."""

    def state() -> TrainingState:
        network = nn.Linear(2, 2)
        guard = GuardedOptimizer({"network": torch.optim.Adam(network.parameters())}, None)  # type: ignore[arg-type]
        return TrainingState({"network": network}, {"guard": guard})

    whole = state()
    whole.networks["network"](torch.ones(1, 2)).sum().backward()
    whole.optimizers["guard"].optimizers["network"].step()
    saved = whole.save(folder, keep_last=1)
    seeds = [(saved / name).read_bytes()]
    if name == "log.json":
        seeds.append(json.dumps([{"loss": [1.0, 2.0, 3.0, None]}]).encode())
    if name != "manifest.json":
        manifest = json.loads((saved / "manifest.json").read_text())
        (saved / "manifest.json").write_text(json.dumps(manifest | {"files": {}}))
    mutate = mutate_safetensors if name.endswith(".safetensors") else mutate_json
    return Reader(saved / name, seeds, lambda: state().load(saved), mutate)


def course(folder: Path) -> Reader:
    settings = course_of(yaml.safe_load(_records()[0]))
    seeds = [json.dumps({"settings": settings, "parts": {"data": "Digits, 1,797 images"}}).encode()]

    def read() -> None:
        changes_since(folder, Course(settings, {"data": "Digits, 1,797 images"}))

    return Reader(folder / "course.json", seeds, read, mutate_json)


def _summary() -> bytes:
    side = {"network_evaluations": 1, "samples": 4, "samples_per_second": 1.5, "fid": 3.25}
    of_fid = {"metric": "fid", "name": "fid4", "value": 3.25, "title": "FID", "higher_is_better": False,
              "features": "a", "reference": "b", "samples": 4, "seeds": [0, 3]}  # fmt: skip
    values = {"teacher": side, "student": side, "images_seen": 16, "seconds": 2.5, "results": {"student": [of_fid]}}
    return json.dumps(values).encode()


def summary(folder: Path) -> Reader:
    return Reader(folder / "summary.json", [_summary()], lambda: to_table({"run": folder}), mutate_json)


def log(folder: Path) -> Reader:
    lines = [{"iteration": i, "images_seen": 16 * i, "loss": 0.5} for i in range(1, 5)]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return Reader(folder / "log.jsonl", [content], lambda: read_log(folder / "log.jsonl"))


def npz(folder: Path) -> Reader:
    seeds = []
    for save_arrays in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save_arrays(file, mu=np.arange(3.0), sigma=np.eye(3))
        seeds.append(file.getvalue())
    return Reader(folder / "a.npz", seeds, lambda: Moments.load(folder / "a.npz"), mutate_zip)


def feature_network(folder: Path) -> Reader:
    path = folder / "features.safetensors"
    Classifier("a", [1, 8, 8], 2, 4, [2], [2], 0.5).save(path)
    return Reader(path, [path.read_bytes()], lambda: load_classifier(str(path)), mutate_safetensors)


def pickle(folder: Path) -> Reader:
    seeds = [pickled({"ema": snapshot(tiny_denoiser())["ema"]})]
    return Reader(folder / "a.pkl", seeds, lambda: load_edm(folder / "a.pkl"))


def torch_file(folder: Path) -> Reader:
    options = {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
    network = EDMDenoiser(
        (3, 8, 8), label_dim=4, architecture="DhariwalUNet", options=options | {"channel_mult_emb": 2}
    )
    seeds = []
    for new_format in (True, False):
        file = io.BytesIO()
        torch.save({"model": network.model.state_dict()}, file, _use_new_zipfile_serialization=new_format)
        seeds.append(file.getvalue())

    def mutate(content: bytes, random: Random) -> bytes:
        return (mutate_zip if content.startswith(b"PK") else mutate_bytes)(content, random)

    return Reader(folder / "a.pt", seeds, lambda: load_edm(folder / "a.pt"), mutate)


#: Readers by name, made in an empty folder.
READERS: dict[str, Callable[[Path], Reader]] = {
    "record": record,
    "card": card,
    "generator": partial(generator, "generator.json"),
    "config": partial(generator, "config.json"),
    "weights": partial(generator, "diffusion_pytorch_model.safetensors"),
    "pipeline": pipeline,
    "manifest": partial(checkpoint, "manifest.json"),
    "state": partial(checkpoint, "state.json"),
    "optimizer": partial(checkpoint, "network.optimizer.json"),
    "optimizer_state": partial(checkpoint, "network.optimizer.safetensors"),
    "pending": partial(checkpoint, "log.json"),
    "course": course,
    "summary": summary,
    "log": log,
    "npz": npz,
    "feature_network": feature_network,
    "pickle": pickle,
    "torch_file": torch_file,
    **DATA_READERS,
}

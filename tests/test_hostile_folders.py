"""Folders and files from others: each ends in one line, runs nothing, and takes neither long nor much memory."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save
from torch import nn

from onestep.build.recorded import Parts
from onestep.build.sampling import sample
from onestep.cache import ChunkCache
from onestep.engine.log import read_log
from onestep.engine.optimizer import GuardedOptimizer
from onestep.engine.records import read_record
from onestep.engine.state import TrainingState
from onestep.export.model_card import write_card
from onestep.metrics.classifier import load_classifier
from onestep.metrics.statistics import Moments
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import Generator
from onestep.models.loading import load_generator
from onestep.reports.compare import to_table
from tests.helpers.configs import configure
from tests.helpers.hostile import MARKER, NO_OBJECT, NO_TENSORS, SPECIAL, bounded, npy, place, refused, write_npz

SYSTEM = {"_target_": "os.system", "_args_": [f"touch {MARKER}"]}
FETCH = {"_target_": "onestep.metrics.inception.fetch", "path": "onestep.py", "sha256": "0", "url": "file:evil.py"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is the test's, where a marker would be found."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def sampling() -> DictConfig:
    return configure("sample", "count=2")


@pytest.fixture(scope="module")
def record(finished_run: Path) -> dict[str, Any]:
    return read_record(finished_run)


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested ``values`` with the values of ``changes`` under full keys."""
    copy: dict[str, Any] = json.loads(json.dumps(values))
    for key, value in changes.items():
        *parents, last = key.split("/")
        node = copy
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return copy


RECORDS: dict[str, tuple[str, Any, str]] = {
    "a function": ("teacher", SYSTEM, "_args_ is no key"),
    "a function by keywords": ("data", FETCH, "is no key of this part"),
    "a function alone": ("teacher/_target_", "os.getcwd", "is not this package's"),
    "by way of the package": ("teacher/_target_", "onestep.config.os.system", "is not this package's"),
    "a method": ("features/_target_", "onestep.metrics.classifier.Classifier.save", "is not this package's"),
    "another class of the package": ("sampler/_target_", "onestep.samplers.EulerSampler", "is not this package's"),
    "a part for a path": ("teacher/path", SYSTEM, "expected a number, a text without .*, or a list"),
    "a part in a list": ("teacher/path", [SYSTEM], r"path\[0\].*expected a number, a text without .*, or a list"),
    "a part for a number": ("sampler/steps", {"_target_": "builtins.int", "_args_": [3]}, "expected a number"),
    "positional arguments": ("teacher/_args_", ["digits"], "teacher._args_ is no key"),
    "a partial call": ("sampler/_partial_", True, "sampler._partial_ is no key"),
    "another conversion": ("sampler/_convert_", "object", "sampler._convert_ is no key"),
    "another recursion": ("data/_recursive_", False, "data._recursive_ is no key"),
    "an unknown key": ("teacher/pickle", "evil.pkl", "teacher.pickle is no key"),
    "an environment variable": ("teacher/path", "${oc.env:HOME}", "expected a number, a text without"),
    "an interpolation": ("sampler/steps", "${seed}", "expected a number, a text without"),
    "a hidden interpolation": ("teacher/path", "a/${oc.env:HOME}/b", "expected a number, a text without"),
    "a list for a part": ("teacher", [1], "is an object of this run"),
    "a name for a part": ("teacher", "os.system", "is an object of this run"),
    "text for a number": ("sampler/rho", "abc", "sampler.rho=abc"),
    "a flag for a number": ("sampler/steps", True, "sampler.steps=true"),
    "a rate without end": ("teacher/guidance", 1e300, "teacher.guidance=1e"),
    "steps for ever": ("sampler/steps", 10**12, "sampler.steps=1000000000000"),
    "no steps": ("sampler/steps", 0, "sampler.steps=0"),
    "no number": ("teacher/guidance", ".nan", "teacher.guidance=.nan"),
    "no choices": ("choices", None, "choices.teacher=None is not"),
    "a list of choices": ("choices", ["digits"], "choices.teacher=None is not"),
    "a choice outside": ("choices/teacher", "../../../tmp/evil", "is not one of this package's choices"),
    "two choices": ("choices/teacher", "digits,fashion", "is not one of this package's choices"),
    "a choice with more": ("choices/teacher", "digits hydra.run.dir=/tmp", "is not one of this package's choices"),
    "a choice of another": ("choices/teacher", "mixture", "is no key of this part"),
    "a choice that is a list": ("choices/teacher", ["digits"], "is not one of this package's choices"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_is_more_than_values(
    name: str, record: dict[str, Any], sampling: DictConfig, tmp_path: Path
) -> None:
    key, value, message = RECORDS[name]
    (tmp_path / "evil.py").write_text("x = 1")
    place(tmp_path / "config.yaml", changed(record, {key: value}))
    parts = Parts(with_run(sampling, tmp_path))
    part = key.split("/")[0]
    with refused(tmp_path, f"config.yaml: .*{message}"):
        parts["teacher" if part == "choices" else part]


def with_run(sampling: DictConfig, run: Path) -> DictConfig:
    config = sampling.copy()
    config.run = str(run)
    return config


@pytest.mark.parametrize(("choice", "changes"), [
    ("inception", {"sha256": "0" * 64}), ("inception", {"sha256": None}), ("clean_fid", {"sha256": "0" * 64}),
    ("torch_fidelity", {"weights": "evil.pth"}),
])  # fmt: skip
def test_a_record_names_no_program(
    choice: str, changes: dict[str, Any], record: dict[str, Any], sampling: DictConfig, tmp_path: Path
) -> None:
    own = configure("sample", f"features={choice}").features
    features = changed(dict(own), changes)
    place(tmp_path / "config.yaml", changed(record, {"features": features, "choices/features": choice}))
    with refused(tmp_path, "config.yaml: features.(sha256|weights)=.* is not this package's"):
        Parts(with_run(sampling, tmp_path))["features"]


def test_a_record_chooses_no_place_to_write_to_or_fetch_from(
    record: dict[str, Any], sampling: DictConfig, tmp_path: Path
) -> None:
    inception = dict(configure("sample", "features=inception").features)
    pipeline = configure("sample", "teacher=diffusers", "teacher.path=x").teacher
    plain: Any = OmegaConf.to_container(pipeline, resolve=True)
    place(tmp_path / "config.yaml", changed(record, {
        "features": inception | {"path": "/evil/a.pt", "url": "http://evil"}, "choices/features": "inception",
        "teacher": changed(plain, {"pipeline/cache": "/evil"}),
        "choices/teacher": "diffusers",
    }))  # fmt: skip
    parts = Parts(with_run(sampling, tmp_path))
    assert "evil" not in str(parts["features"]) + str(parts["teacher"])
    assert parts["features"].path == inception["path"] and parts["teacher"].path == "x"


TEXTS: dict[str, Any] = {
    "apply": "teacher: !!python/object/apply:os.system ['touch MARKER']",
    "name": "teacher: !!python/name:os.system",
    "new": "teacher: !!python/object/new:os._wrap_close [1]",
    "bomb": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "recursive": "teacher: &a [*a]",
    "merged": "base: &b {x: 1}\nteacher: {<<: *b}",
    "deep": "teacher: " + "[" * 50_000,
    "deep_blocks": "- " * 50_000,
    "date": "teacher: 2001-99-99",
    "number": "teacher: " + "9" * 5000,
    "list": "[1, 2]",
    "keys": "1: 2",
    "not_utf8": b"teacher: \xff",
    "large": "teacher: " + "x" * 2**20,
} | {kind: kind for kind in SPECIAL}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_a_record_that_is_no_plain_yaml(name: str, sampling: DictConfig, tmp_path: Path) -> None:
    place(tmp_path / "config.yaml", TEXTS[name])
    with refused(tmp_path, "config.yaml"):
        Parts(with_run(sampling, tmp_path))


def test_a_student_is_drawn_whatever_the_other_parts_are(
    finished_run: Path, record: dict[str, Any], tmp_path: Path
) -> None:
    hostile = {"teacher": SYSTEM, "sampler": "own.Sampler", "data": FETCH, "features": [1], "choices": 3}
    run = tmp_path / "run"
    shutil.copytree(finished_run / "generator", run / "generator")
    place(run / "config.yaml", changed(record, hostile))
    result = sample(configure("sample", "count=2", f"run={run}", f"save_to={tmp_path / 'images'}"))
    assert result["count"] == 2 and not (tmp_path / MARKER).exists()


CARDS: dict[str, tuple[str, Any]] = {
    "variable": ("teacher/path", "${oc.env:SECRET}"), "variable of a part": ("objective/x", "${oc.env:SECRET}"),
    "lines": ("objective/x", "a\n\n# injected\n\n| b |"), "target lines": ("data/_target_", "A.B\n# injected"),
    "list": ("objective", [1, 2]), "number": ("teacher/_target_", 3), "no target": ("sampler/_target_", ""),
    "no head": ("discriminator", None), "part": ("generator/gan_weight", SYSTEM),
    "text for numbers": ("generator", "x"),
    "nested": ("data", {"_target_": "A", "images": {"_target_": "B", "images": {"_target_": 1}}}),
    "long": ("objective/x", "y" * 10_000), "template": ("objective/x", "{{ 7 * 191 }}{% for x in y %}"),
}  # fmt: skip


@pytest.mark.parametrize("name", CARDS)
def test_a_card_shows_a_record_as_text(
    name: str, record: dict[str, Any], finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "the secret")
    key, value = CARDS[name]
    place(tmp_path / "config.yaml", changed(record, {key: value}))
    shutil.copy(finished_run / "summary.json", tmp_path)
    with bounded():
        write_card(tmp_path, tmp_path, Generator.from_pretrained(finished_run / "generator"), "ema", "usage")
    text = (tmp_path / "README.md").read_text()
    assert not any(line.startswith("# injected") for line in text.splitlines())
    assert "the secret" not in text and "1337" not in text and max(map(len, text.splitlines())) < 700
    assert not (tmp_path / MARKER).exists()


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator")
    network = EDMDenoiser((2, 1, 1), architecture="MLP", options={"width": 8, "depth": 1})
    Generator(network, 1.0).save_pretrained(folder)
    return folder


LEVELS: dict[str, Any] = {
    "text": {"sigma_init": "1"}, "flag": {"sigma_init": True}, "far": {"sigma_init": 1e300},
    "none": {"sigma_init": None},
    "zero_level": {"sigma_init": 0}, "lists": {"sigma_init": 1.0, "later_sigmas": [[0.5]]},
    "nine_steps": {"sigma_init": 1.0, "later_sigmas": [0.9 - 0.01 * step for step in range(9)]},
    "ascending": {"sigma_init": 1.0, "later_sigmas": [2.0]}, "infinite": '{"sigma_init": 1e999}',
}  # fmt: skip


@pytest.mark.parametrize("file", ["generator.json", "config.json"])
@pytest.mark.parametrize("name", NO_OBJECT | LEVELS)
def test_settings_of_a_generator(name: str, file: str, generator: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(generator, tmp_path / "generator"))
    place(folder / file, (NO_OBJECT | LEVELS)[name])
    with refused(tmp_path, "generator.json|config.json"):
        Generator.from_pretrained(folder)


@pytest.mark.parametrize("name", NO_OBJECT | LEVELS)
def test_index_of_a_pipeline(name: str, generator: Path, tmp_path: Path) -> None:
    shutil.copytree(generator, tmp_path / "pipeline" / "denoiser")
    place(tmp_path / "pipeline" / "model_index.json", {"sigma_init": 1.0})
    assert load_generator(tmp_path / "pipeline").sigma_init == 1
    place(tmp_path / "pipeline" / "model_index.json", (NO_OBJECT | LEVELS)[name])
    with refused(tmp_path):
        load_generator(tmp_path / "pipeline")


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("name", [*NO_TENSORS, "int64", "bool", "nan", "inf", "complex64"])
def test_weights(name: str, generator: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(generator, tmp_path / "generator"))
    content = NO_TENSORS.get(name)
    if content is None:
        tensors = load_file(folder / WEIGHTS)
        last = list(tensors)[-1]
        other = tensors[last].to(getattr(torch, name)) if hasattr(torch, name) and name not in ("nan", "inf") else None
        tensors[last] = torch.full_like(tensors[last], float(name)) if other is None else other
        content = save(tensors)
    place(folder / WEIGHTS, content)
    with refused(tmp_path):
        Generator.from_pretrained(folder)


def tiny_state() -> TrainingState:
    network, settings = nn.Linear(2, 2), None
    guard = GuardedOptimizer({"network": torch.optim.Adam(network.parameters())}, settings)  # type: ignore[arg-type]
    return TrainingState({"network": network}, {"guard": guard})


def forge(folder: Path, name: str, content: Any) -> None:
    """Replace a file of a checkpoint, and its size and hash in the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if name == "manifest.json" and isinstance(content, dict):
        content = manifest | content
    place(folder / name, content)
    if name != "manifest.json" and (folder / name).is_file():
        read = (folder / name).read_bytes() if content != "sparse" else b""
        manifest["files"][name] = {"bytes": len(read), "sha256": hashlib.sha256(read).hexdigest()}
        place(folder / "manifest.json", manifest)


STATE: dict[str, Any] = {"iteration": 1, "seconds": 1.0, "skipped_steps": 0, "rollbacks": 0}
FORGED: list[tuple[str, Any]] = [
    *((name, content) for name in ("state.json", "network.optimizer.json") for content in NO_OBJECT.values()),
    *(("state.json", STATE | {name: value}) for name in STATE for value in (10**18, -1, "1", None, True, 0.5e308 * 10)
      if (name, value) not in (("seconds", 10**18),)),
    ("log.json", {}), ("log.json", [1]), ("log.json", [{"loss": [1]}]), ("log.json", [{"loss": ["1"] * 4}]),
    ("log.json", "[" * 10**5),
    *(("network.safetensors", content) for content in NO_TENSORS.values()),
    ("network.safetensors", save({"weight": torch.full((2, 2), torch.nan), "bias": torch.zeros(2)})),
    ("network.safetensors", save({"weight": torch.zeros(3, 3), "bias": torch.zeros(2)})),
    ("network.optimizer.safetensors", save({"0.exp_avg": torch.full((2, 2), torch.inf)})),
    ("network.optimizer.safetensors", save({"99.exp_avg": torch.zeros(2, 2)})),
    ("network.optimizer.safetensors", save({"a.exp_avg": torch.zeros(2, 2)})),
    ("network.optimizer.safetensors", save({"exp_avg": torch.zeros(2, 2)})),
    ("network.optimizer.safetensors", save({"0.step": torch.ones(()), "1.exp_avg": torch.zeros(2)})),
    *(("network.optimizer.json",
       {"kind": "Adam", "guard": {"loss_scale": scale, "steps_at_scale": 0, "lr_factor": rate}})
      for scale, rate in ((1.0, 1e30), (1.0, -1.0), (0.0, 1.0), ("1", 1.0))),
    *(("manifest.json", content) for content in NO_OBJECT.values()),
    *(("manifest.json", {"measured": [], "files": {name: {"bytes": 4, "sha256": "0"}}})
      for name in ("../evil", "/etc/passwd", "a/../../evil", "", "..", "a\0b", "x" * 300)),
    ("manifest.json", {"measured": [{"key": "fid", "value": "1", "higher_is_better": False}], "files": {}}),
    ("manifest.json", {"measured": [], "files": []}),
    ("manifest.json", {"measured": [], "files": {"state.json": {"bytes": 10**30, "sha256": ""}}}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(FORGED)))
def test_checkpoint(number: int, tmp_path: Path) -> None:
    name, content = FORGED[number]
    state = tiny_state()
    state.networks["network"](torch.ones(1, 2)).sum().backward()
    state.optimizers["guard"].optimizers["network"].step()
    folder = state.save(tmp_path, keep_last=1)
    (tmp_path / "checkpoints" / "evil").write_text("evil")
    forge(folder, name, content)
    with refused(tmp_path, "cannot resume from"):
        tiny_state().load(folder)


SIDE = {"network_evaluations": 1, "samples": 4, "samples_per_second": 1.0}
SUMMARY: dict[str, Any] = {"teacher": SIDE, "student": SIDE, "images_seen": 1, "seconds": 1.0, "results": {}}
SUMMARIES: dict[str, Any] = NO_OBJECT | {
    f"{key}={value}": changed(SUMMARY, {key: value})
    for key in ("teacher", "student", "images_seen", "seconds", "results", "results/student", "student/fid")
    for value in ("text", [1], {"a": "b"}, -1, True)
    if (key, value) not in (("seconds", -1), ("student/fid", -1))
}


@pytest.mark.parametrize("name", SUMMARIES)
def test_summary(name: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    place(tmp_path / "run" / "summary.json", SUMMARIES[name])
    with refused(tmp_path, "summary.json"):
        to_table({"run": tmp_path / "run"})


@pytest.mark.parametrize("kind", ["pipe", "zero", "folder", "sparse"])
def test_log(kind: str, tmp_path: Path) -> None:
    place(tmp_path / "log.jsonl", kind)
    with refused(tmp_path, "log.jsonl"):
        read_log(tmp_path / "log.jsonl")


NUMBERS = np.zeros(2).tobytes()
ARRAYS: dict[str, Any] = {
    "pickle": {"mu.npy": npy("(1,)", "'|O'", b"\x80\x04cos\nsystem\n(S'touch MARKER'\ntR."), "sigma.npy": b""},
    "petabytes": {"mu.npy": npy(f"({2**50},)"), "sigma.npy": npy("(1, 1)")},
    "overflow": {"mu.npy": npy(f"({2**40}, {2**40})"), "sigma.npy": npy("(1, 1)")},
    "negative": {"mu.npy": npy("(-1,)"), "sigma.npy": npy("(1, 1)")},
    "no_shape": {"mu.npy": npy("__import__('os').system('touch MARKER')"), "sigma.npy": npy("(1, 1)")},
    "deep_header": {"mu.npy": npy("(" * 5000), "sigma.npy": npy("(1, 1)")},
    "records": {"mu.npy": npy("(1,)", "[('a', '<f8'), ('b', '|O')]"), "sigma.npy": npy("(1, 1)")},
    "no_numpy": {"mu.npy": b"x" * 1000, "sigma.npy": b""},
    "empty": {"mu.npy": b"", "sigma.npy": b""},
    "text": {"mu.npy": npy("(2,)", "'<U2'", bytes(16)), "sigma.npy": npy("(2, 2)", content=NUMBERS * 2)},
    "empty_arrays": {"mu.npy": npy("(0,)"), "sigma.npy": npy("(0, 0)")},
    "outside": {"../../evil.npy": npy("(2,)", content=NUMBERS), "/mu.npy": b""},
}


@pytest.mark.parametrize("name", ARRAYS)
def test_reference_of_arrays(name: str, tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", ARRAYS[name])
    with refused(tmp_path, "a.npz"):
        Moments.load(tmp_path / "a.npz")


def test_reference_that_is_a_bomb(tmp_path: Path) -> None:
    side = 2**14  # sigma of 2 GiB of zeros in 2 MB
    members = {"mu.npy": npy(f"({side},)", content=bytes(8 * side))}
    write_npz(tmp_path / "mu.npz", members)
    with zipfile.ZipFile(tmp_path / "mu.npz", "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("sigma.npy", npy(f"({side}, {side})") + bytes(2**28))
    content = (tmp_path / "mu.npz").read_bytes()
    (tmp_path / "mu.npz").write_bytes(content)
    with refused(tmp_path, "mu.npz"):
        Moments.load(tmp_path / "mu.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", *SPECIAL], ids=str)
def test_reference_that_is_no_archive(content: Any, tmp_path: Path) -> None:
    place(tmp_path / "a.npz", content)
    with refused(tmp_path, "a.npz"):
        Moments.load(tmp_path / "a.npz")


CLASSIFIER = {"name": "a", "image_shape": [1, 8, 8], "num_classes": 2, "num_features": 2,
              "channels": [2], "strides": [2], "held_out_accuracy": None}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "no_config": "", "list": [1], "deep": "[" * 10**5, "channels": CLASSIFIER | {"channels": [2**40]},
    "layers": CLASSIFIER | {"channels": [1] * 10**5, "strides": [1] * 10**5},
    "size": CLASSIFIER | {"image_shape": [1, 2**30, 2**30]},
    "features": CLASSIFIER | {"num_features": 2**62}, "strides": CLASSIFIER | {"strides": [0]},
    "unequal": CLASSIFIER | {"strides": [1, 1]}, "text": CLASSIFIER | {"num_classes": "2"},
    "more": CLASSIFIER | {"self": 1}, "shape": CLASSIFIER | {"image_shape": [1, 8]},
}  # fmt: skip


@pytest.mark.parametrize("name", [*CONFIGS, *(name for name in NO_TENSORS if name != "absent")])
def test_feature_network(name: str, tmp_path: Path) -> None:
    config = CONFIGS.get(name)
    text = config if isinstance(config, str) else json.dumps(config)
    content = save({"a": torch.zeros(2)}, {"config": text}) if name in CONFIGS else NO_TENSORS[name]
    place(tmp_path / "features.safetensors", content)
    with refused(tmp_path, "features.safetensors"):
        load_classifier(str(tmp_path / "features.safetensors"))


@pytest.mark.parametrize("name", NO_TENSORS)
def test_a_chunk_of_a_cache_is_computed_again(name: str, tmp_path: Path) -> None:
    chunks = ChunkCache(str(tmp_path), "key", "pairs", "pairs.cache")
    place(chunks.path("a"), NO_TENSORS[name])
    with bounded():
        assert chunks.read("a") is None and not chunks.holds("a")
    chunks.write("a", {"x": torch.ones(2)})
    assert torch.equal((chunks.read("a") or {})["x"], torch.ones(2)) and chunks.holds("a")

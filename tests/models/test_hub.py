"""Ids on the hub in place of folders: what is asked for, and what to do where it is not to be had."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from huggingface_hub import errors
from huggingface_hub.utils._paths import filter_repo_objects

from onestep.metrics.transformer_features import load_transformer
from onestep.models.diffusers.folder import INDEX, autoencoder_folder, pipeline_folder


def http_error(kind: Any) -> Exception:
    """An error of the hub; its response is not read."""
    return kind("401 Client Error.\n\nCannot access it.", response=_RESPONSE)


_RESPONSE: Any = SimpleNamespace(status_code=401, headers={}, request=None)
ERRORS: dict[str, tuple[Callable[[], Exception], str]] = {
    "gated": (
        lambda: http_error(errors.GatedRepoError),
        "Accept its conditions on its page on the hub, and",
    ),
    "missing": (lambda: http_error(errors.RepositoryNotFoundError), "Check the id, or log in by hf auth login"),
    "revision": (lambda: http_error(errors.RevisionNotFoundError), "Check the revision"),
    "file": (lambda: http_error(errors.RemoteEntryNotFoundError), "It lacks a file: choose another id, or a folder"),
    "offline": (
        lambda: errors.OfflineModeIsEnabled("offline\nmode"),
        "It is not in the cache of this machine",
    ),
    "cache": (lambda: errors.LocalEntryNotFoundError("not found"), "hub is out of reach or switched off: download it"),
    "network": (lambda: RuntimeError("connection reset"), "connection reset"),
    "disk": (lambda: OSError(28, "No space left on device"), "No space left on device"),
}
CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "pipeline": (
        lambda: pipeline_folder("some/id"),
        "no pipeline of diffusers at 'some/id': expected a folder",
    ),
    "autoencoder": (
        lambda: autoencoder_folder("some/id"),
        "no autoencoder at 'some/id': expected a folder",
    ),
    "features": (
        lambda: load_transformer("Dinov2Model", "some/id"),
        "some/id: no Dinov2Model there: give a folder",
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ERRORS)
def test_what_the_hub_does_not_give(name: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ERRORS[name][0]()

    def passed_on(*_: Any, **__: Any) -> None:
        try:
            fail()
        except Exception as error:
            raise OSError("We could not load it.\nSee the documentation.") from error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr(transformers.Dinov2Model, "from_pretrained", fail if name in ("network", "disk") else passed_on)
    with pytest.raises(ValueError) as caught:
        CALLS[call][0]()
    message = str(caught.value)
    assert message.startswith(CALLS[call][1]) and ERRORS[name][1] in message and "\n" not in message


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_only_data_is_asked_for(variant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / INDEX).write_text(
        json.dumps({"_class_name": "A", "unet": ["diffusers", "B"], "vae": ["diffusers", "C"]})
    )
    asked: list[dict[str, Any]] = []

    def download(path: str, *names: str, **options: Any) -> str:
        asked.append({"path": path, "names": names, **options})
        return str(tmp_path / INDEX if names else tmp_path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert pipeline_folder("some/id", True, "main", variant) == tmp_path
    assert autoencoder_folder("some/id", True, "main") == tmp_path
    assert {(one["path"], one["local_files_only"], one["revision"]) for one in asked} == {("some/id", True, "main")}
    stem, middle = "diffusion_pytorch_model", "" if variant is None else f".{variant}"
    data = [f"unet/{stem}{middle}.safetensors", f"vae/{stem}{middle}-00001-of-00002.safetensors", "unet/config.json"]
    programs = [f"unet/{stem}.bin", "unet/model.py", "pipeline.py", "unet/x.pkl", "unet/x.ckpt", "a.pt"]
    programs += ["x.safetensors", "other/config.json", f"unet/{stem}.safetensors.py"]
    found: set[str] = set()
    for one in asked[1:]:
        found |= set(filter_repo_objects([*data, *programs], allow_patterns=one["allow_patterns"]))
    assert set(data) <= found and not found & set(programs)


def test_weights_of_another_variant_are_asked_for_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hub whose network has both, whose encoder has the default alone, and whose autoencoder fp16 alone."""
    index = {"unet": ["diffusers", "A"], "text_encoder": ["transformers", "B"], "vae": ["diffusers", "C"]}
    contents = {INDEX: json.dumps({"_class_name": "P", **index})} | {f"{name}/config.json": "{}" for name in index}
    stem = "diffusion_pytorch_model"
    weights = [f"unet/{stem}.fp16.safetensors", f"unet/{stem}.safetensors", f"vae/{stem}.fp16.safetensors"]
    contents |= dict.fromkeys([*weights, "text_encoder/model.safetensors"], "")

    def download(path: str, *names: str, allow_patterns: list[str] | None = None, **options: Any) -> str:
        for name in filter_repo_objects(contents, allow_patterns=allow_patterns or list(names)):
            (tmp_path / path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path / name).write_text(contents[name])
        return str(tmp_path / path / (names[0] if names else ""))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for name, variant, network in (("half", "fp16", weights[0]), ("plain", None, weights[1])):
        folder = pipeline_folder(name, variant=variant)
        found = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.safetensors"))
        assert found == sorted([network, "text_encoder/model.safetensors", weights[2]])
    monkeypatch.setitem(contents, "config.json", "{}")
    monkeypatch.setitem(contents, f"{stem}.fp16.safetensors", "")
    assert {file.name for file in autoencoder_folder("vae").iterdir()} == {"config.json", f"{stem}.fp16.safetensors"}

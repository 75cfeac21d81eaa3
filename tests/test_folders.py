"""Where caches are kept, and what happens where they cannot be."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from onestep.cache import CachedRows, ChunkCache
from onestep.folders import cache_folder, is_cache_folder, process_folder
from onestep.metrics.inception import InceptionFeatures
from tests.helpers.configs import configure


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "~/.cache/onestep/"), ("", "~/.cache/onestep/"), ("cache", "~/.cache/onestep/"), ("/a b", "/a b/onestep/")],
)
def test_the_caches_follow_the_xdg_standard(value: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder("pairs") == f"{expected}pairs"
    train = configure("train", "objective=dmd", "features=inception")
    text = configure("sample", "teacher=diffusers", "teacher.path=x")
    found = [train.features_cache, train.pairs.cache, train.features.path, text.teacher.pipeline.cache]
    assert found == [expected + name for name in ("features", "pairs", "inception-2015-12-05.pt", "encodings")]
    assert text.features_cache == train.features_cache


def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither HOME nor an entry in the passwd file."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: str(path))


def blocked_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file where the caches would be."""
    (tmp_path / "onestep").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("block", [no_home, blocked_home])
def test_what_cannot_be_kept_is_computed_for_the_process(
    block: Callable[[pytest.MonkeyPatch, Path], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    block(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    cache = ChunkCache(cache_folder("pairs"), tmp_path.name, "pairs", "pairs.cache")
    rows = CachedRows(cache, ["a", "b"], 2)
    rows.fill(lambda chunk: {"x": torch.arange(2) + 2 * chunk}, "test")
    assert rows[[3, 0]]["x"].tolist() == [3, 0]
    assert cache.path("a").is_relative_to(process_folder()) and cache.read("a") is not None
    (notice,) = capsys.readouterr().out.splitlines()
    assert "pairs cannot be written" in notice and "for this run alone" in notice and "pairs.cache=..." in notice
    assert not (tmp_path / "~").exists()


def test_a_cache_that_no_longer_takes_files_is_still_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    full = False

    def save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        if full and tmp_path in path.parents:
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr("onestep.cache.save_file", save)
    cache = ChunkCache(cache_folder("pairs"), tmp_path.name, "pairs", "pairs.cache")
    cache.write("old", {"x": torch.ones(1)})
    full = True
    cache.write("new", {"x": torch.zeros(1)})
    found = [cache.read(name) for name in ("old", "new")]
    assert [None if tensors is None else tensors["x"].tolist() for tensors in found] == [[1.0], [0.0]]
    assert "No space left" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["file/x", "~nobody_of_this_name/x"])
def test_a_chosen_cache_is_refused_instead(folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"pairs cannot be written to .*choose another folder with pairs\.cache="):
        ChunkCache(folder, "key", "pairs", "pairs.cache")


def test_the_package_s_own_folders_are_known() -> None:
    assert is_cache_folder(cache_folder("pairs")) and is_cache_folder(Path(cache_folder("x")))
    assert not is_cache_folder("pairs") and not is_cache_folder("/elsewhere/onestep/pairs")


def test_a_feature_network_that_cannot_be_kept(
    inception_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked_home(monkeypatch, tmp_path)
    content_hash = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    path = cache_folder("network.pt")
    InceptionFeatures(path, content_hash, inception_file.as_uri(), None)
    assert (process_folder() / "network.pt").is_file() and "for this run alone" in capsys.readouterr().out

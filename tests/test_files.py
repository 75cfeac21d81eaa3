"""Atomic files and folders, and hashes of content."""

import hashlib
import os
import socket
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from onestep import files
from onestep.files import atomic_file, atomic_folder, hash_file, hash_parts, hash_tensors, write_text


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


class KilledError(BaseException):
    """Simulates the death of a process."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of synced paths, and of renamed ones after ->, in order."""
    seen: list[str] = []
    sync, replace = files.sync, os.replace

    def watched_sync(path: Path) -> None:
        seen.append(f"{path.name}/" if path.is_dir() else path.name)
        sync(path)

    def watched_replace(source: Path, target: Path) -> None:
        seen.append(f"-> {target.name}")
        replace(source, target)

    monkeypatch.setattr(files, "sync", watched_sync)
    monkeypatch.setattr(os, "replace", watched_replace)
    return seen


def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "numbers.npz"
    for content in ("old", "new"):
        with atomic_file(target) as temporary:
            assert temporary.parent == target.parent and temporary.suffix == ".npz"
            temporary.write_text(content)
            assert tree(target.parent).get("numbers.npz") == (None if content == "old" else "old")
        assert tree(target.parent) == {"numbers.npz": content}


@pytest.mark.parametrize("error", [OSError, KilledError])
def test_what_fails_changes_nothing(error: type[BaseException], tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(error), atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise error
    with pytest.raises(error), atomic_file(tmp_path / "file"):
        raise error  # before anything is written
    with pytest.raises(error), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "part").write_text("half")
        raise error
    assert tree(tmp_path) == {"file": "old"} and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_when_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()  # an empty one is replaced
    ended = os.fork() or os._exit(0)
    os.waitpid(ended, 0)
    host = socket.gethostname()
    for process in (ended, os.getpid()):  # of killed processes, one of them with this one's id
        (stale := tmp_path / f".writing_{host}_{process}_model" / "model").mkdir(parents=True)
        (stale / "half").write_text("of a killed process")
    others = {f".writing_{host}_{os.getppid()}_model", f".writing_other_{ended}_model", f".writing_{host}_{ended}_a"}
    for name in others:  # of a living process, of another machine, and of another folder
        (tmp_path / name).mkdir()
    with atomic_folder("model") as temporary:
        assert temporary.name == "model" and list(temporary.iterdir()) == []
        for name in others:
            (tmp_path / name).rmdir()
        (temporary / "part").mkdir()
        (temporary / "part" / "config").write_text("{}")
        assert list((tmp_path / "model").iterdir()) == []
    assert tree(tmp_path) == {"model/part/config": "{}"} and list(tmp_path.iterdir()) == [tmp_path / "model"]
    with pytest.raises(OSError, match="not empty"), atomic_folder("model") as temporary:
        (temporary / "other").write_text("")
    assert tree(tmp_path) == {"model/part/config": "{}"} and list(tmp_path.iterdir()) == [tmp_path / "model"]
    for content in ("old", "new"):
        with atomic_folder("model", replace=True) as temporary:
            (temporary / "weights").write_text(content)
    assert tree(tmp_path) == {"model/part/config": "{}", "model/weights": "new"}
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_a_durable_one_is_synced_before_and_after_it_is_renamed(tmp_path: Path, calls: list[str]) -> None:
    write_text(tmp_path / "file", "text")
    assert calls == [f".writing_{socket.gethostname()}_{os.getpid()}_file", "-> file", f"{tmp_path.name}/"]
    calls.clear()
    with atomic_folder(tmp_path / "folder", durable=True) as temporary:
        (temporary / "part").mkdir()
        for name in ("a", "part/b"):
            (temporary / name).write_text(name)
    assert sorted(calls[:4]) == ["a", "b", "folder/", "part/"] and calls[3] == "folder/"
    assert calls[4:] == ["-> folder", f"{tmp_path.name}/"]
    calls.clear()
    with atomic_file(tmp_path / "file") as path:
        path.write_text("not durable")
    with atomic_folder(tmp_path / "other"):
        pass
    assert calls == ["-> file", "-> other"]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0o027])
def test_the_permissions_are_those_of_the_umask(umask: int, tmp_path: Path) -> None:
    """Also of safetensors, which gives a new file to its owner alone."""
    tensors = {"weight": torch.zeros(1)}
    previous = os.umask(umask)
    try:
        write_text(tmp_path / "text", "text")
        with atomic_file(tmp_path / "weights.safetensors") as temporary:
            save_file(tensors, temporary)
        with atomic_folder(tmp_path / "model") as folder:
            (folder / "unet").mkdir()
            for path in (folder / "weights.safetensors", folder / "unet" / "weights.safetensors"):
                save_file(tensors, path)
    finally:
        os.umask(previous)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    files = {"text", "weights.safetensors"}
    assert modes == {name: (0o666 if name in files else 0o777) & ~umask for name in (*files, "model", "unet")}


def test_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert (
        hash_file(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180


def test_hash_of_parts() -> None:
    digests = b"".join(hashlib.sha256(part).digest() for part in (b"ab", b"c"))
    assert hash_parts(["ab", b"c"]) == hashlib.sha256(digests).hexdigest()
    assert len({hash_parts(parts) for parts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], ["abc", ""], [])}) == 6


def test_hash_of_tensors() -> None:
    """The hash depends on name, dtype, shape and every bit; not on order, strides or gradients."""
    weight = torch.arange(6.0).reshape(2, 3)
    first = hash_tensors({"a": weight, "b": torch.tensor(1)})
    transposed = weight.T.contiguous().T.requires_grad_()
    assert not transposed.is_contiguous() and hash_tensors({"b": torch.tensor(1), "a": transposed}) == first
    others = [
        {"a": weight, "c": torch.tensor(1)},
        {"a": weight.reshape(3, 2), "b": torch.tensor(1)},
        {"a": weight, "b": torch.tensor(1, dtype=torch.int32)},
        {"a": weight.view(torch.int32), "b": torch.tensor(1)},
        {"a": weight * -1.0 * -1.0 + torch.tensor([0.0, 0.0, 1e-6]), "b": torch.tensor(1)},
        {"a": weight, "b": torch.tensor(1), "c": torch.empty(0)},
        {"a": weight.bfloat16(), "b": torch.tensor(True)},
        {},
    ]
    assert len({first, *map(hash_tensors, others)}) == 1 + len(others)

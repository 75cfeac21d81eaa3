"""Checkpoints on disk after crashes, with a full disk and after flipped bits; deletion of old ones and resumption."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from onestep.engine import checkpoint
from onestep.engine.checkpoint import (
    Snapshot,
    best_values,
    damage,
    find_checkpoint,
    list_checkpoints,
    set_later_aside,
    write_checkpoint,
)
from onestep.metrics.result import Measurement


def make_snapshot(
    iteration: int, value: float = 0.0, fid: float | None = None, recall: float | None = None
) -> Snapshot:
    tensors = {"network": {"weight": torch.full((100,), value)}}
    measured = [Measurement("fid", fid, higher_is_better=False)] if fid is not None else []
    if recall is not None:
        measured.append(Measurement("recall", recall, higher_is_better=True))
    return Snapshot(iteration, tensors, {"state": {"iteration": iteration}}, measured)


def value_in(folder: Path) -> float:
    return load_file(folder / "network.safetensors")["weight"][0].item()


def names(run: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run)]


class KilledError(BaseException):
    """Simulates the death of a process."""


def die_at_call(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Die at the ``count``-th system call that changes the disk, before it takes effect."""
    calls = 0

    def dying(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= count:
                raise KilledError
            return function(*arguments, **options)

        return call

    for module, name in (
        (os, "replace"), (os, "fsync"), (shutil, "rmtree"), (checkpoint, "save_file"), (Path, "write_text"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, dying(getattr(module, name)))


@pytest.mark.parametrize("iteration", [2, 3])
def test_a_death_at_any_moment_of_saving_loses_nothing(
    iteration: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later iteration, and the same one again: the old or the new checkpoint is always intact."""
    found = []
    for moment in range(1, 100):
        run = tmp_path / str(moment)
        write_checkpoint(run, make_snapshot(2, value=1.0), keep_last=1)
        try:
            with monkeypatch.context() as patch:
                die_at_call(patch, moment)
                write_checkpoint(run, make_snapshot(iteration, value=2.0), keep_last=1)
            break
        except KilledError:
            left = find_checkpoint("auto", run)
            assert left is not None and damage(left) is None
            found.append(value_in(left))
            # The next attempt succeeds and removes the rest.
            assert value_in(write_checkpoint(run, make_snapshot(4, value=3.0), keep_last=1)) == 3.0
            assert [path.name for path in (run / "checkpoints").iterdir()] == ["iteration_00000004"]
    assert len(found) > 8 and set(found) == {1.0, 2.0} and found == sorted(found)
    last = find_checkpoint("auto", run)
    assert last is not None and value_in(last) == 2.0 and len(names(run)) == 1


def test_same_iteration_again_and_again(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        written = write_checkpoint(tmp_path, make_snapshot(5, value), keep_last=1)
        assert find_checkpoint("auto", tmp_path) == written and value_in(written) == value
    assert len(names(tmp_path)) == 1


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    for iteration, fid in enumerate((9.0, 2.0, None, 5.0, 4.0, 3.0)):
        write_checkpoint(tmp_path, make_snapshot(iteration, fid=fid), keep_last=2)
    assert names(tmp_path) == ["iteration_00000001", "iteration_00000004", "iteration_00000005"]
    assert best_values(tmp_path).get("fid") == Measurement("fid", 2.0, higher_is_better=False)
    assert best_values(tmp_path).get("recall") is None
    write_checkpoint(tmp_path, make_snapshot(6, fid=1.0), keep_last=2)
    assert names(tmp_path) == ["iteration_00000005", "iteration_00000006"]


def test_values_of_different_metrics_are_not_compared(tmp_path: Path) -> None:
    """A run resumed with another evaluation.best: the best checkpoint by each key is kept, the first of equals."""
    for iteration, value in enumerate(({"fid": 2.0}, {"fid": 3.0}, {"recall": 0.8}, {"recall": 0.5}, {"recall": 0.8})):
        write_checkpoint(tmp_path, make_snapshot(iteration, **value), keep_last=1)
    assert names(tmp_path) == ["iteration_00000000", "iteration_00000002", "iteration_00000004"]
    assert best_values(tmp_path).get("recall") == Measurement("recall", 0.8, higher_is_better=True)


def test_each_of_several_values_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    for iteration, (fid, recall) in enumerate(((3.0, 0.1), (2.0, 0.2), (4.0, 0.9), (5.0, 0.3), (6.0, 0.4))):
        write_checkpoint(tmp_path, make_snapshot(iteration, fid=fid, recall=recall), keep_last=1)
    assert names(tmp_path) == ["iteration_00000001", "iteration_00000002", "iteration_00000004"]
    assert best_values(tmp_path).get("fid") == Measurement("fid", 2.0, higher_is_better=False)
    assert best_values(tmp_path).get("recall") == Measurement("recall", 0.9, higher_is_better=True)


def test_later_checkpoints_are_ignored_after_a_rollback(tmp_path: Path) -> None:
    for iteration in (1, 2, 3):
        write_checkpoint(tmp_path, make_snapshot(iteration, fid=1.0 / iteration), keep_last=3)
    set_later_aside(tmp_path, iteration=1)
    found = find_checkpoint("auto", tmp_path)
    assert found is not None and found.name == "iteration_00000001"
    write_checkpoint(tmp_path, make_snapshot(2, value=7.0, fid=2.0), keep_last=3)
    assert sorted(path.name for path in found.parent.iterdir()) == ["iteration_00000001", "iteration_00000002"]
    assert value_in(found.parent / "iteration_00000002") == 7.0


def test_what_a_user_puts_beside_them_is_left_alone(tmp_path: Path) -> None:
    """Neither read, renamed nor deleted, by any function; the names that are taken are avoided."""
    first = write_checkpoint(tmp_path, make_snapshot(6, value=6.0), keep_last=1)
    parent = first.parent
    copies = ("iteration_00000006 (copy)", "iteration_00000099", "iteration_00000006_2", "iteration_backup",
              "iteration_12", "iteration_000000007", "iteration_00000008", "notes", ".abandoned_mine")  # fmt: skip
    for name in copies:
        shutil.copytree(first, parent / name)
    (parent / "iteration_00000007").write_text("a file")
    (parent / "iteration_00000098").symlink_to(first)
    left = {*copies, "iteration_00000007", "iteration_00000098"}

    with pytest.warns(UserWarning, match="not written by a run and ignored: iteration_000000"):
        assert find_checkpoint("auto", tmp_path) == first
    assert best_values(tmp_path).get("fid") is None and names(tmp_path) == ["iteration_00000006"]
    written = [write_checkpoint(tmp_path, make_snapshot(i, value=i), keep_last=1).name for i in (7, 8, 8, 9)]
    assert written == ["iteration_00000007_2", "iteration_00000008_2", "iteration_00000008_3", "iteration_00000009"]
    assert {path.name for path in parent.iterdir()} == {*left, "iteration_00000009"}
    set_later_aside(tmp_path, iteration=1)
    assert {path.name for path in parent.iterdir()} == {*left, ".abandoned_iteration_00000009"}
    write_checkpoint(tmp_path, make_snapshot(2), keep_last=1)
    assert {path.name for path in parent.iterdir()} == {*left, "iteration_00000002"}
    assert all(value_in(parent / name) == 6.0 for name in (*copies[:2], "notes"))


def test_a_link_to_the_checkpoints_folder(tmp_path: Path) -> None:
    """On another disk, for example."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk")
    written = write_checkpoint(tmp_path, make_snapshot(1), keep_last=1)
    assert find_checkpoint("auto", tmp_path) == written and (tmp_path / "disk" / written.name).is_dir()


FILES = ("network.safetensors", "state.json", "manifest.json")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "emptied": lambda path: path.write_bytes(b""),
    "absent": Path.unlink,
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_one_is_named_and_passed_over(kind: str, file: str, tmp_path: Path) -> None:
    good = write_checkpoint(tmp_path, make_snapshot(1), keep_last=2)
    bad = write_checkpoint(tmp_path, make_snapshot(2), keep_last=2)
    DAMAGES[kind](bad / file)
    # A flipped bit in the manifest may be in the record of any file.
    named = r"\.(safetensors|json) " if (kind, file) == ("flipped", "manifest.json") else file
    with pytest.warns(UserWarning, match=f"{bad} is damaged and skipped: .*{named}"):
        assert find_checkpoint("auto", tmp_path) == good
    if file != "manifest.json":
        with pytest.raises(ValueError, match=f"cannot resume from {bad}: {file}"):
            find_checkpoint(str(bad), tmp_path)


def test_nothing_but_damaged_ones_is_no_fresh_start(tmp_path: Path) -> None:
    flip(write_checkpoint(tmp_path, make_snapshot(1), keep_last=2) / "state.json")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match=r"every checkpoint of .* is damaged .*state\.json has changed"),
    ):
        find_checkpoint("auto", tmp_path)


def test_a_disk_without_room_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_checkpoint(tmp_path, make_snapshot(1), keep_last=1)
    for litter in (".writing_host_1_iteration_00000002/iteration_00000002", ".abandoned_iteration_00000003"):
        (good.parent / litter).mkdir(parents=True)  # it is deleted before room is asked for
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(
        ValueError, match=r"iteration 2 could not be written to .*\(it needs 0\.0 MB, and 1\.0 MB are free\)"
    ):
        write_checkpoint(tmp_path, make_snapshot(2), keep_last=1)
    assert list(good.parent.iterdir()) == [good]


def test_a_disk_that_runs_full_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write_checkpoint(tmp_path, make_snapshot(1), keep_last=1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="No space left on device.*free disk space and continue with resume=auto"):
        write_checkpoint(tmp_path, make_snapshot(2), keep_last=1)
    assert list(good.parent.iterdir()) == [good] and damage(good) is None

"""Pairs: their images, and their cache after interruptions and damage."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from onestep.distillation.pairs import PairCache, PairSettings, TeacherPairs, prepare_pairs
from onestep.evaluation.generate import SampleSpace
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.guidance import GuidanceRule
from onestep.models.loading import load_teacher
from onestep.samplers import HeunSampler
from onestep.seeding import seeded_inputs
from tests.helpers.edm_models import tiny_denoiser

SAMPLER = HeunSampler(steps=3, sigma_min=0.1, sigma_max=10.0)
Prepare = Callable[..., TeacherPairs]


@pytest.fixture
def teacher() -> EDMDenoiser:
    return tiny_denoiser(seed=1).requires_grad_(False)


@pytest.fixture
def prepare(teacher: EDMDenoiser, accelerator: Accelerator, tmp_path: Path) -> Prepare:
    """Prepares pairs in chunks of four, ten by default, in a cache in ``tmp_path``."""

    def run(count: int = 10, cache: str = "cache", sharing: Any = accelerator) -> TeacherPairs:
        return prepare_pairs(PairSettings(count, 4, str(tmp_path / cache)), teacher, SAMPLER, sharing, 5, seed=0)

    return run


@dataclass
class Draws:
    """Records the latents of every call of the sampler, which can fail at a given call."""

    latents: list[Tensor] = field(default_factory=list)
    dies_at: int | None = None

    @property
    def chunks(self) -> list[int]:
        """The chunks of four that were generated, identified by their first latent."""
        first = [seeded_inputs([4 * chunk], (1, 8, 8), 3)[0][0] for chunk in range(10)]
        return [next(k for k in range(10) if torch.equal(first[k], latents[0])) for latents in self.latents]


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    seen, draw = Draws(), HeunSampler.__call__

    def watched(self: HeunSampler, denoiser: EDMDenoiser, latents: Tensor, *given: Any) -> Tensor:
        if len(seen.latents) == seen.dies_at:
            raise KeyboardInterrupt
        seen.latents.append(latents)
        return draw(self, denoiser, latents, *given)

    monkeypatch.setattr(HeunSampler, "__call__", watched)
    return seen


def files(cache: Path) -> dict[str, bytes]:
    """Names and contents of the files in the only folder of a cache."""
    (folder,) = cache.iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


THREE_CHUNKS = {f"images_{chunk:06d}.safetensors" for chunk in range(3)}


def test_the_images_are_those_of_the_sampler(prepare: Prepare, teacher: EDMDenoiser, tmp_path: Path) -> None:
    for pairs in (prepare(), prepare()):  # generated, and read from the cache
        assert len(pairs.images) == len(pairs.latents) == 10
        for seed in range(10):
            latents, condition = seeded_inputs([seed], (1, 8, 8), 3)
            assert torch.equal(pairs.latents[seed], latents[0])
            assert torch.equal(pairs.condition["labels"][seed], condition["labels"][0])
            image = SAMPLER(teacher, latents, condition)
            torch.testing.assert_close(pairs.images[seed], image[0], rtol=0, atol=1e-6)
        assert pairs.images.std() > 0.1 and (pairs.images[0] - pairs.images[1]).abs().max() > 0.1
    assert files(tmp_path / "cache").keys() == THREE_CHUNKS


def test_pairs_have_the_classes_of_the_data(teacher: EDMDenoiser, accelerator: Accelerator, tmp_path: Path) -> None:
    settings = PairSettings(4, 4, str(tmp_path))
    for classes in (None, [0, 2]):  # the second does not read the first one's cache
        pairs = prepare_pairs(settings, teacher, SAMPLER, accelerator, 5, 0, SampleSpace.of(teacher, classes))
        latents, condition = seeded_inputs([0, 1, 2, 3], (1, 8, 8), 3, classes)
        assert torch.equal(pairs.condition["labels"], condition["labels"])
        torch.testing.assert_close(pairs.images, SAMPLER(teacher, latents, condition), rtol=0, atol=1e-6)


def test_without_classes(accelerator: Accelerator, tmp_path: Path) -> None:
    teacher = tiny_denoiser(label_dim=0)
    pairs = prepare_pairs(PairSettings(3, 4, str(tmp_path)), teacher, SAMPLER, accelerator, 5, seed=0)
    latents, condition, images = pairs.batch(0)
    assert condition == {} == pairs.condition
    torch.testing.assert_close(images, SAMPLER(teacher, latents), rtol=0, atol=1e-6)


def test_a_batch_is_a_function_of_its_iteration(prepare: Prepare) -> None:
    pairs, seen = prepare(), list[int]()
    for iteration in (1, 0):  # ten pairs in batches of five: each once in two iterations
        latents, condition, images = pairs.batch(iteration)
        assert torch.equal(pairs.batch(iteration)[0], latents)
        for row in range(5):
            (index,) = [k for k in range(10) if torch.equal(pairs.latents[k], latents[row])]
            assert torch.equal(pairs.images[index], images[row])
            assert torch.equal(pairs.condition["labels"][index], condition["labels"][row])
            seen.append(index)
    assert sorted(seen) == list(range(10)) and seen != list(range(10))
    assert not torch.equal(pairs.batch(2)[0], pairs.batch(0)[0])  # the next epoch has another order
    other = TeacherPairs(pairs.latents, pairs.condition, pairs.images, 5, seed=1, accelerator=pairs.accelerator)
    assert not torch.equal(other.batch(0)[0], pairs.batch(0)[0])


def test_more_pairs_than_there_are_in_a_batch(prepare: Prepare) -> None:
    pairs = prepare(count=3)
    assert [len(tensor) for tensor in (pairs.batch(7)[0], pairs.batch(7)[1]["labels"], pairs.batch(7)[2])] == [5, 5, 5]


def test_what_is_there_is_not_drawn_again(prepare: Prepare, draws: Draws, capsys: pytest.CaptureFixture[str]) -> None:
    first = prepare()
    assert draws.chunks == [0, 1, 2]
    assert "0 of 3 chunks are in" in capsys.readouterr().out
    second = prepare()
    assert draws.chunks == [0, 1, 2]
    assert capsys.readouterr().out == ""
    assert torch.equal(first.images, second.images)


def test_more_pairs_are_drawn_behind_those_there(prepare: Prepare, draws: Draws) -> None:
    few = prepare(10)
    many = prepare(18)
    assert draws.chunks == [0, 1, 2, 3, 4]
    assert len(many.images) == 18 and torch.equal(many.images[:10], few.images)
    fewer = prepare(3)
    assert len(draws.latents) == 5 and torch.equal(fewer.images, few.images[:3])
    assert len(fewer.latents) == 3


def test_an_interrupted_drawing_goes_on_where_it_stopped(prepare: Prepare, draws: Draws, tmp_path: Path) -> None:
    straight = prepare(cache="straight")
    draws.latents, draws.dies_at = [], 2
    with pytest.raises(KeyboardInterrupt):
        prepare()
    done = files(tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(done) == sorted(THREE_CHUNKS)[:2]

    draws.dies_at = None
    resumed = prepare()
    assert draws.chunks == [0, 1, 2]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert files(tmp_path / "cache") == files(tmp_path / "straight")
    assert torch.equal(resumed.images, straight.images)


def test_a_chunk_that_was_being_written_is_drawn_again(
    prepare: Prepare, draws: Draws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def die_for_good(*_: object) -> None:
            patch.setattr(Path, "unlink", die)  # a killed process deletes nothing
            die()

        patch.setattr(os, "replace", die_for_good)
        prepare()
    unfinished = list(files(tmp_path / "cache"))
    assert unfinished and all(name.startswith(".writing_") for name in unfinished)
    prepare()
    assert draws.chunks == [0, 0, 1, 2]
    assert files(tmp_path / "cache").keys() == THREE_CHUNKS  # the leftovers have been overwritten


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "replaced"])
def test_a_damaged_chunk_is_drawn_again(
    damage: str, prepare: Prepare, draws: Draws, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = prepare()
    intact = files(tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    path = folder / "images_000001.safetensors"
    content = intact[path.name]
    path.write_bytes({"cut": content[:-10], "emptied": b""}.get(damage, content[:-1] + bytes([content[-1] ^ 1])))
    if damage == "replaced":  # an intact file without a checksum
        save_file({"images": torch.zeros(4, 1, 8, 8)}, path)
    draws.latents = []
    capsys.readouterr()
    assert torch.equal(prepare().images, straight.images)
    assert draws.chunks == [1]
    assert f"{path} is damaged or cannot be read: its pairs are computed again" in capsys.readouterr().out
    assert files(tmp_path / "cache") == intact


def test_the_generation_is_divided_among_processes(
    prepare: Prepare, teacher: EDMDenoiser, draws: Draws, tmp_path: Path
) -> None:
    def process(rank: int, wait: Callable[[], object]) -> Any:
        return SimpleNamespace(
            process_index=rank, num_processes=2, is_main_process=rank == 0, device=torch.device("cpu"),
            mixed_precision="no", autocast=nullcontext, print=lambda text: None, wait_for_everyone=wait,
        )  # fmt: skip

    settings = PairSettings(18, 4, str(tmp_path / "cache"))
    second = process(1, wait=lambda: None)

    def second_draws() -> None:
        assert draws.chunks == [0, 2, 4]
        PairCache(settings, teacher, SAMPLER, second).read_or_generate([1, 3])

    ours = prepare(18, sharing=process(0, wait=second_draws))
    assert draws.chunks == [0, 2, 4, 1, 3]
    theirs = prepare(18, sharing=second)
    assert len(draws.latents) == 5 and torch.equal(ours.images, theirs.images)
    shares = [len(pairs.batch(0)[0]) for pairs in (ours, theirs)]
    both = torch.cat([pairs.batch(0)[0] for pairs in (ours, theirs)])
    assert sum(shares) == 5 and torch.equal(both, prepare(18).batch(0)[0])
    # Machines with separate caches generate all pairs each.
    prepare(18, cache="elsewhere", sharing=second)
    assert draws.chunks[5:] == [1, 3, 0, 2, 4]


# The key of the cache.


def test_everything_that_the_images_depend_on_has_a_folder_of_its_own(tmp_path: Path) -> None:
    def folder(
        teacher: EDMDenoiser,
        sampler: HeunSampler = SAMPLER,
        batch_size: int = 4,
        precision: str = "no",
        count: int = 10,
        classes: list[int] | None = None,
        conditions: str = "",
    ) -> Path:
        process: Any = SimpleNamespace(mixed_precision=precision)
        settings, space = PairSettings(count, batch_size, str(tmp_path)), SampleSpace.of(teacher, classes)
        return PairCache(settings, teacher, sampler, process, space, conditions).folder

    usual = folder(tiny_denoiser(seed=1))
    one_weight = tiny_denoiser(seed=1)
    next(one_weight.parameters()).data.view(-1)[0] += 1e-6
    other_sigma_data = EDMDenoiser(**{**tiny_denoiser(seed=1).config, "sigma_data": 0.6})
    other_sigma_data.load_state_dict(tiny_denoiser(seed=1).state_dict())
    guided = tiny_denoiser(seed=1)
    guided.guidance = 1.5
    rescaled = tiny_denoiser(seed=1)
    rescaled.guidance, rescaled.guidance_rule = 1.5, GuidanceRule(rescale=0.5, interval=None)
    others = [
        folder(tiny_denoiser(seed=2)),
        folder(guided),
        folder(rescaled),
        folder(tiny_denoiser(seed=1), classes=[0, 2]),
        folder(tiny_denoiser(seed=1), conditions="of these data"),
        folder(one_weight),
        folder(other_sigma_data),
        folder(tiny_denoiser(seed=1), sampler=HeunSampler(4, 0.1, 10.0)),
        folder(tiny_denoiser(seed=1), sampler=HeunSampler(3, 0.1, 11.0)),
        folder(tiny_denoiser(seed=1), sampler=HeunSampler(3, 0.1, 10.0, churn=5.0)),
        folder(tiny_denoiser(seed=1), batch_size=5),
        folder(tiny_denoiser(seed=1), precision="bf16"),
    ]
    assert len({usual, *others}) == 13 and {path.parent for path in others} == {tmp_path}
    assert folder(tiny_denoiser(seed=1), count=1000, sampler=HeunSampler(3, 0.1, 10.0)) == usual


def test_where_a_teacher_lies_does_not_matter(accelerator: Accelerator, tmp_path: Path) -> None:
    load_teacher("digits", guidance=1.0).save_pretrained(tmp_path / "copy")
    settings = PairSettings(1, 1, str(tmp_path / "cache"))
    folders = {
        PairCache(settings, load_teacher(path, guidance=1.0), SAMPLER, accelerator).folder
        for path in ("digits", f"{tmp_path}/copy")
    }
    assert len(folders) == 1


# User errors.


@pytest.mark.parametrize("name", ["count", "batch_size"])
def test_numbers_that_must_be_positive(name: str) -> None:
    values: dict[str, Any] = {"count": 1, "batch_size": 1, "cache": "nowhere"}
    with pytest.raises(ValueError, match=rf"{name}=0: expected an integer of at least 1"):
        PairSettings(**(values | {name: 0}))


def test_a_cache_that_cannot_be_written(teacher: EDMDenoiser, accelerator: Accelerator, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = rf"the pairs cannot be written to {tmp_path}/file/.*: free disk space, or choose .* with pairs\.cache="
    with pytest.raises(ValueError, match=message):
        PairCache(PairSettings(1, 1, f"{tmp_path}/file"), teacher, SAMPLER, accelerator)


def test_a_full_disk(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match=r"cannot be written to .*No space left on device.*: free disk space"):
        prepare()


def test_the_home_folder_is_found(
    teacher: EDMDenoiser, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = PairCache(PairSettings(1, 1, "~/.cache/onestep/pairs"), teacher, SAMPLER, accelerator)
    assert cache.folder.is_dir() and cache.folder.parent == tmp_path / ".cache" / "onestep" / "pairs"

"""Whole runs, small: what a distillation writes, that it resumes bit for bit, and what is drawn from it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from onestep.assets import ASSETS
from onestep.data.dataset import PositionSampler
from onestep.data.digits import Digits
from onestep.metrics.classifier import load_classifier
from onestep.metrics.evaluator import Evaluator
from onestep.metrics.features import to_uint8
from onestep.metrics.frechet import FrechetDistance
from onestep.networks.generator import Generator
from onestep.samplers import HeunSampler
from onestep.seeding import seeded_generator, seeded_inputs
from onestep.teachers.pretrained import load_teacher
from onestep.training import distillation, report, sampling
from onestep.training.build import Distillation, build_distillation
from onestep.training.distillation import distill, draw_exit_step
from onestep.training.log import read_log
from onestep.training.sampling import sample

REPOSITORY = Path(__file__).parents[1]
TrainConfig = Callable[..., DictConfig]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Distillation]:
    """The parts of every distillation that the test starts."""
    kept: list[Distillation] = []

    def build_and_keep(*arguments: Any) -> Distillation:
        kept.append(build_distillation(*arguments))
        return kept[-1]

    monkeypatch.setattr(distillation, "build_distillation", build_and_keep)
    return kept


@pytest.fixture
def dmd(tmp_path: Path) -> tuple[str, ...]:
    """The overrides of DMD with 24 pairs in a cache of the test's own."""
    return ("objective=dmd", "pairs.count=24", "pairs.batch_size=8", f"pairs.cache={tmp_path / 'pairs'}")


FEW_STEPS = ("training.later_sigmas=[0.5,0.2]",)


@pytest.fixture(scope="module")
def few_step_run(train_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished distillation into a generator of three steps; not to be written to."""
    folder = tmp_path_factory.mktemp("few_steps") / "run"
    distill(train_config(folder, *FEW_STEPS))
    return folder


# What a run writes.


def test_the_summary(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary.keys() == {"teacher", "student", "images_seen", "seconds", "figures"}
    for side in ("teacher", "student"):
        assert summary[side].keys() == {"fid", "recall", "network_evaluations", "samples", "samples_per_second"}
        assert summary[side]["samples"] == 32
        assert summary[side]["fid"] > 0 and 0 <= summary[side]["recall"] <= 1
        assert summary[side]["samples_per_second"] > 0
    assert summary["teacher"]["network_evaluations"] == 3  # two steps of Heun
    assert summary["student"]["network_evaluations"] == 1
    assert summary["images_seen"] == 96  # 6 cycles of 16
    assert summary["seconds"] > 0


def test_the_log(finished_run: Path) -> None:
    lines = read_log(finished_run / "log.jsonl")
    training = [line for line in lines if "loss" in line]
    assert [line["cycle"] for line in training] == [1, 2, 3, 4, 5, 6]
    assert all(line["images_seen"] == 16 * line["cycle"] for line in lines)
    assert [line["cycle"] for line in lines if "fid" in line] == [3, 6]
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    # A fresh discriminator says 0: its loss is 2 log 2. After its first step Jensen-Shannon's weight is still near 1/2.
    assert training[0]["discriminator_loss"] == pytest.approx(2 * np.log(2), rel=1e-6)
    assert training[0]["logit_real"] == training[0]["logit_generated"] == 0
    assert training[0]["weight_mean"] == pytest.approx(0.5, abs=0.01)


def test_the_config_is_written_resolved(finished_run: Path, train_config: TrainConfig) -> None:
    text = (finished_run / "config.yaml").read_text()
    assert "${" not in text
    saved = OmegaConf.create(text)
    assert saved == OmegaConf.create(OmegaConf.to_container(train_config(finished_run), resolve=True))
    assert saved.fake_sigma == saved.sigma and saved.objective.divergence == saved.divergence


def test_the_files(finished_run: Path) -> None:
    written = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    beside_checkpoints = {path for path in written if not path.startswith("checkpoints/")}
    network = {"config.json", "diffusion_pytorch_model.safetensors", "generator.json"}
    assert beside_checkpoints == {
        "config.yaml", "log.jsonl", "summary.json", "curves.png", "side_by_side.png",
        "samples/cycle_00000003.png", "samples/cycle_00000006.png",
        *(f"generator/{name}" for name in network), *(f"generator_raw/{name}" for name in network),
    }  # fmt: skip
    assert Image.open(finished_run / "samples" / "cycle_00000006.png").size == (500, 50)  # ten of 8 pixels, times 6
    for name in ("curves.png", "side_by_side.png"):
        assert np.asarray(Image.open(finished_run / name).convert("L")).std() > 10  # something is drawn
    assert sorted(path.name for path in (finished_run / "checkpoints").iterdir()) == [
        f"cycle_{cycle:08d}" for cycle in range(1, 7)
    ]


def test_the_generators_are_those_of_the_last_checkpoint(finished_run: Path) -> None:
    checkpoint = finished_run / "checkpoints" / "cycle_00000006"
    for folder, name in (("generator", "generator_ema"), ("generator_raw", "generator")):
        saved = load_file(checkpoint / f"{name}.safetensors")
        generator = Generator.from_pretrained(finished_run / folder)
        assert generator.sigma_init == OmegaConf.load(finished_run / "config.yaml").training.sigma_init
        assert all(torch.equal(value, saved[key]) for key, value in generator.state_dict().items())


def test_a_run_shorter_than_its_first_log_line(train_config: TrainConfig, tmp_path: Path) -> None:
    overrides = ("training.images=16", "training.log_every=5", "training.checkpoint_every=5")
    assert distill(train_config(tmp_path, *overrides))["images_seen"] == 16
    assert (tmp_path / "log.jsonl").read_text() == ""
    assert (tmp_path / "checkpoints" / "cycle_00000001").is_dir()  # the last cycle is saved whatever the interval


# Resuming.


class KilledError(Exception):
    """Stands for a process that dies."""


def assert_same_checkpoint(left: Path, right: Path) -> None:
    files = sorted(path.name for path in left.iterdir())
    assert files == sorted(path.name for path in right.iterdir())
    for name in files:
        if name.endswith(".safetensors"):
            ours, theirs = load_file(left / name), load_file(right / name)
            assert ours.keys() == theirs.keys() and ours
            assert [key for key, value in ours.items() if not torch.equal(value, theirs[key])] == [], name
        elif name not in ("state.json", "manifest.json"):  # which know how long it took
            assert (left / name).read_text() == (right / name).read_text()
    cycles = [json.loads((folder / "state.json").read_text())["cycle"] for folder in (left, right)]
    assert cycles[0] == cycles[1]


def distill_until_cycle_5(monkeypatch: pytest.MonkeyPatch, config: DictConfig) -> None:
    """A run that is killed in the update of the generator of cycle 5."""
    update_generator = distillation.update_generator

    def killed_in_cycle_5(parts: Distillation, cycle: int, *inputs: Any) -> dict[str, Tensor]:
        if cycle == 5:
            raise KilledError
        return update_generator(parts, cycle, *inputs)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(distillation, "update_generator", killed_in_cycle_5)
        distill(config)


@pytest.mark.parametrize("straight_run, overrides", [("finished_run", ()), ("few_step_run", FEW_STEPS)])
def test_a_resumed_run_is_the_same_run(
    straight_run: str,
    overrides: tuple[str, ...],
    request: pytest.FixtureRequest,
    train_config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished: Path = request.getfixturevalue(straight_run)
    overrides = (*overrides, "training.checkpoint_every=3")
    # The checkpoint is that of cycle 3; the log goes on to 5 and must be cut.
    distill_until_cycle_5(monkeypatch, train_config(tmp_path, *overrides))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["cycle_00000003"]
    assert read_log(tmp_path / "log.jsonl")[-1]["cycle"] == 5

    summary = distill(train_config(tmp_path, *overrides, "resume=auto"))
    for cycle in ("cycle_00000003", "cycle_00000006"):
        assert_same_checkpoint(finished / "checkpoints" / cycle, tmp_path / "checkpoints" / cycle)
    assert read_log(tmp_path / "log.jsonl") == read_log(finished / "log.jsonl")
    straight = json.loads((finished / "summary.json").read_text())
    for side in ("teacher", "student"):
        for key in ("fid", "recall"):
            assert summary[side][key] == straight[side][key]


def test_a_resumed_run_reads_on_in_the_pairs(
    dmd: tuple[str, ...], train_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    distill(train_config(straight, *dmd))
    distill_until_cycle_5(monkeypatch, train_config(resumed, "training.checkpoint_every=3", *dmd))
    distill(train_config(resumed, "training.checkpoint_every=3", "resume=auto", *dmd))
    assert_same_checkpoint(*(folder / "checkpoints" / "cycle_00000006" for folder in (straight, resumed)))
    losses = [
        [line.get("regression_loss") for line in read_log(folder / "log.jsonl")] for folder in (straight, resumed)
    ]
    assert losses[0] == losses[1] and len({loss for loss in losses[0] if loss is not None}) == 6


@pytest.mark.parametrize("of", [".", "checkpoints/cycle_00000006"])
def test_resuming_in_another_folder(of: str, finished_run: Path, train_config: TrainConfig, tmp_path: Path) -> None:
    overrides = ("training.images=112", "evaluation.samples=16", f"resume={finished_run / of}")
    assert distill(train_config(tmp_path, *overrides))["images_seen"] == 112
    assert [line["cycle"] for line in read_log(tmp_path / "log.jsonl")] == [7]


def test_the_seed_decides_the_run(finished_run: Path, train_config: TrainConfig, tmp_path: Path) -> None:
    distill(train_config(tmp_path, "seed=1", "evaluation.samples=16"))
    ours, theirs = (read_log(folder / "log.jsonl")[0] for folder in (tmp_path, finished_run))
    assert ours["fake_score_loss"] != theirs["fake_score_loss"]


# The methods.


@pytest.mark.parametrize("divergence", ["reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("discriminator", ["teacher_features", "shared_encoder"])
@pytest.mark.parametrize("objective", ["f_distill", "uni_instruct"])
def test_every_method_moves_the_student_and_not_the_teacher(
    objective: str,
    discriminator: str,
    divergence: str,
    train_config: TrainConfig,
    built: list[Distillation],
    tmp_path: Path,
) -> None:
    overrides = (f"objective={objective}", f"discriminator={discriminator}", f"divergence={divergence}")
    distill(train_config(tmp_path, *overrides, "training.gan_weight=0.1", "training.images=32"))
    (parts,) = built
    judges = parts.judges
    original = load_file(ASSETS / "digits" / "diffusion_pytorch_model.safetensors")
    for name, value in judges.teacher.state_dict().items():
        assert torch.equal(value, original[name]), name
    assert all(p.grad is None and not p.requires_grad for p in judges.teacher.parameters())

    # Each student starts as the teacher; with a shared encoder the decoder learns too.
    assert judges.fake_score is not None and judges.discriminator is not None
    for student in (parts.generator.denoiser, judges.fake_score):
        moved = [name for name, value in student.named_parameters() if not torch.equal(value, original[name])]
        assert len(moved) > 0.9 * len(original)
    assert (judges.discriminator.logit.weight != 0).all()  # a fresh one is 0
    host = judges.teacher if discriminator == "teacher_features" else judges.fake_score
    assert judges.discriminator_host is host


@pytest.mark.parametrize("objective", ["f_distill", "uni_instruct"])
def test_reverse_kl_needs_no_discriminator(
    objective: str, train_config: TrainConfig, built: list[Distillation], tmp_path: Path
) -> None:
    overrides = (f"objective={objective}", "divergence=reverse_kl", "discriminator=none", "training.gan_weight=0")
    distill(train_config(tmp_path, *overrides, "training.images=32"))
    assert built[0].judges.discriminator is None and built[0].judges.normalizer is None
    assert {"generator.safetensors", "fake_score.safetensors"} == {
        file.name
        for file in (tmp_path / "checkpoints" / "cycle_00000002").glob("*.safetensors")
        if "optimizer" not in file.name and "ema" not in file.name
    }
    (first, *_) = read_log(tmp_path / "log.jsonl")
    assert "discriminator_loss" not in first and "adversarial_loss" not in first
    assert first["generator_gradient"] > 0


def test_fake_score_steps_are_steps_of_the_fake_score(
    train_config: TrainConfig, built: list[Distillation], tmp_path: Path
) -> None:
    distill(train_config(tmp_path, "training.fake_score_steps=3", "training.images=32"))
    taken = {
        name: {int(state["step"]) for state in optimizer.optimizer.state.values()}
        for name, optimizer in built[0].optimizers.items()
    }
    assert taken == {"generator": {2}, "fake_score": {6}}


def test_the_regression_is_added_to_the_objective(
    dmd: tuple[str, ...], train_config: TrainConfig, built: list[Distillation], tmp_path: Path
) -> None:
    """The gradient with it, less that without, is the weighted mean squared error's, computed here from the seeds."""
    one_step = ("training.images=16", "evaluation.samples=16", "training.grad_clip=1e9")
    distill(train_config(tmp_path / "with", *dmd, *one_step, "training.regression_weight=0.5"))
    distill(train_config(tmp_path / "without", *dmd, *one_step, "training.regression_weight=0", "pairs=null"))
    with_it, without_it = built
    assert without_it.pairs is None

    # The generator starts as the teacher; of 24 pairs, cycle 0 reads 16.
    generator = Generator(load_teacher("digits", guidance=1.0).requires_grad_(True), with_it.settings.sigma_init)
    indices = next(iter(PositionSampler(24, 16, seed=0)))
    latents, condition = seeded_inputs(indices, (1, 8, 8), 10)
    x_teacher = HeunSampler(2, 0.002, 80.0)(load_teacher("digits", guidance=1.0), latents, condition)
    loss = (generator(latents, condition) - x_teacher).square().mean()
    expected = torch.autograd.grad(0.5 * loss, list(generator.parameters()))

    (line,) = (line for line in read_log(tmp_path / "with" / "log.jsonl") if "loss" in line)
    assert line["regression_loss"] == pytest.approx(loss.item(), rel=1e-4) and loss > 0.01
    differences = [
        torch.zeros_like(gradient) if ours.grad is None or theirs.grad is None else ours.grad - theirs.grad
        for ours, theirs, gradient in zip(
            with_it.generator.parameters(), without_it.generator.parameters(), expected, strict=True
        )
    ]
    difference, whole = (torch.cat([part.flatten() for part in parts]) for parts in (differences, expected))
    assert (difference - whole).norm() < 1e-4 * whole.norm()
    assert whole.norm() > 0.01


def test_the_pairs_are_drawn_once(
    dmd: tuple[str, ...], train_config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, drawn in (("first", True), ("second", False)):
        distill(train_config(tmp_path / run, *dmd, "training.images=16", "evaluation.samples=16"))
        assert ("0 of 3 chunks are in" in capsys.readouterr().out) is drawn


@pytest.mark.parametrize("objective, largest", [("f_distill", 0.0), ("uni_instruct", 1e-6)])
def test_a_fake_score_that_is_the_teacher_gives_no_gradient(
    objective: str, largest: float, train_config: TrainConfig, built: list[Distillation], tmp_path: Path
) -> None:
    """Exactly none for f-distill; Uni-Instruct's is a sum of terms that cancel up to rounding."""
    lines = []
    for lr in (0.0, 1e-3):
        overrides = (
            f"objective={objective}", "divergence=reverse_kl", "weighting=unit", "discriminator=none",
            "training.gan_weight=0", "training.images=16", f"optimizer.fake_score.lr={lr}", "evaluation.samples=16",
        )  # fmt: skip
        distill(train_config(tmp_path / str(lr), *overrides))
        lines += read_log(tmp_path / str(lr) / "log.jsonl")
    equal, learnt = lines
    assert equal["score_gap"] == equal["loss"] == 0
    assert learnt["score_gap"] > 0.01
    assert equal["generator_gradient"] <= largest * learnt["generator_gradient"]
    if largest == 0:
        pairs = zip(built[0].generator.denoiser.parameters(), built[0].judges.teacher.parameters(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_the_average_starts_as_the_generator_and_then_lags(finished_run: Path) -> None:
    for cycle, equal in (("cycle_00000001", True), ("cycle_00000006", False)):
        folder = finished_run / "checkpoints" / cycle
        average, network = (load_file(folder / f"{name}.safetensors") for name in ("generator_ema", "generator"))
        assert all(torch.equal(average[key], network[key]) for key in network) is equal


# Generators of several steps.


def test_every_step_is_trained_about_as_often() -> None:
    """Each of 4 steps is expected 1000 times of 4000, with a standard deviation of 27.4; four are allowed."""
    for seed in (0, 1):
        drawn = [draw_exit_step(seed, cycle, steps=4) for cycle in range(4000)]
        assert np.abs(np.bincount(drawn, minlength=4) - 1000).max() <= 110
        repeats = sum(now == then for now, then in pairwise(drawn))
        assert repeats == pytest.approx(1000, abs=110)  # neighbouring cycles are independent


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """The noises of every call of ``Generator.simulate`` with a gradient: of each cycle."""
    kept: list[list[Tensor]] = []
    simulate = Generator.simulate

    def keep_and_simulate(generator: Generator, noises: list[Tensor], condition: Tensor | None) -> Tensor:
        if torch.is_grad_enabled():
            kept.append(noises)
        return simulate(generator, noises, condition)

    monkeypatch.setattr(Generator, "simulate", keep_and_simulate)
    return kept


def test_a_run_of_several_steps(
    simulated: list[list[Tensor]], train_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[tuple[str, str]] = []
    monkeypatch.setattr(report, "save_side_by_side", lambda teacher, student, both, path: titles.append(both))
    summary = distill(train_config(tmp_path, *FEW_STEPS, "training.images=144", "evaluation.samples=16"))
    exit_steps = [len(noises) - 1 for noises in simulated]
    assert exit_steps == [draw_exit_step(0, cycle, steps=3) for cycle in range(9)]
    assert set(exit_steps) == {0, 1, 2}
    assert summary["student"]["network_evaluations"] == 3
    assert titles == [("teacher, 3 evaluations", "student, 3 evaluations")]
    for folder in ("generator", "generator_raw"):
        assert Generator.from_pretrained(tmp_path / folder).later_sigmas == [0.5, 0.2]


def test_one_step_takes_one_draw_of_its_cycle_s_randomness(
    simulated: list[list[Tensor]], train_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn behind the latents is what it was before generators had several steps."""
    states: list[Tensor] = []
    update_fake_score = distillation.update_fake_score

    def keep_state(*inputs: Any) -> dict[str, Tensor]:
        states.append(inputs[-1].generator.get_state())
        return update_fake_score(*inputs)

    monkeypatch.setattr(distillation, "update_fake_score", keep_state)
    distill(train_config(tmp_path, "training.images=32", "evaluation.samples=16"))
    assert len(simulated) == len(states) == 2
    for cycle, ((latents,), state) in enumerate(zip(simulated, states, strict=True)):
        random = seeded_generator(0, 0, cycle)
        assert torch.equal(latents, torch.randn(16, 1, 8, 8, generator=random))
        assert torch.equal(state, random.get_state())


# Sampling.


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The images of every call of ``sample``, before they are quantised."""
    kept: list[Tensor] = []
    write = sampling._write

    def write_and_keep(images: Tensor, *arguments: Any) -> Path:
        kept.append(images)
        return write(images, *arguments)

    monkeypatch.setattr(sampling, "_write", write_and_keep)
    return kept


Draw = Callable[..., tuple[Tensor, dict[str, Any]]]


@pytest.fixture
def draw(finished_run: Path, compose_config: TrainConfig, drawn: list[Tensor], tmp_path: Path) -> Draw:
    """Draws from the finished run into ``tmp_path``: the images and what ``sample`` returns."""

    def run(*overrides: str) -> tuple[Tensor, dict[str, Any]]:
        config = compose_config("sample", f"run={finished_run}", "device=cpu", f"save_to={tmp_path}", *overrides)
        result = sample(config)
        return drawn[-1], result

    return run


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_a_seed_is_an_image(model: str, draw: Draw) -> None:
    # The run's two steps of the sampler are so long that they magnify rounding.
    model_overrides = (f"model={model}", "sampler=heun", "format=npz")
    many, result = draw(*model_overrides, "count=64")
    assert result["count"] == len(many) == 64
    alone, _ = draw(*model_overrides, "count=1", "seed=7")
    torch.testing.assert_close(alone[0], many[7], rtol=0, atol=1e-5)
    in_threes, _ = draw(*model_overrides, "count=64", "batch_size=3")
    torch.testing.assert_close(in_threes, many, rtol=0, atol=1e-5)
    assert (many[7] - many[8]).abs().max() > 0.1


def test_a_seed_is_an_image_after_several_steps(draw: Draw, few_step_run: Path) -> None:
    of_run = (f"run={few_step_run}", "format=npz")
    many, result = draw(*of_run, "count=64")
    assert result["network_evaluations"] == 3
    alone, _ = draw(*of_run, "count=1", "seed=7")
    torch.testing.assert_close(alone[0], many[7], rtol=0, atol=1e-5)
    in_threes, _ = draw(*of_run, "count=64", "batch_size=3")
    torch.testing.assert_close(in_threes, many, rtol=0, atol=1e-5)
    without_run, _ = draw("run=null", f"checkpoint={few_step_run / 'generator'}", "format=npz", "count=64")
    assert torch.equal(without_run, many)
    one_step = Generator(Generator.from_pretrained(few_step_run / "generator").denoiser, sigma_init=1.0)
    with torch.no_grad():
        first = one_step(*seeded_inputs(list(range(64)), (1, 8, 8), 10))
    assert (first - many).abs().mean() > 0.01


def test_png_files_are_named_by_their_seeds(draw: Draw, tmp_path: Path) -> None:
    images, result = draw("count=3", "seed=5")
    assert result["images"] == str(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000005.png", "000006.png", "000007.png"]
    for seed, image in zip((5, 6, 7), to_uint8(images), strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{seed:06d}.png")), image[0].numpy())


def test_an_array_holds_the_images_and_their_seeds(draw: Draw, tmp_path: Path) -> None:
    images, result = draw("count=5", "seed=100", "format=npz")
    assert result["images"] == str(tmp_path / "samples.npz")
    saved = np.load(tmp_path / "samples.npz")
    assert saved["images"].shape == (5, 8, 8, 1) and saved["images"].dtype == np.uint8
    assert np.array_equal(saved["images"], to_uint8(images).permute(0, 2, 3, 1).numpy())
    assert saved["seeds"].tolist() == [100, 101, 102, 103, 104]


def test_a_grid_is_one_picture(draw: Draw, tmp_path: Path) -> None:
    images, _ = draw("count=12", "format=grid")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (100, 500)  # two rows of ten tiles: 8 pixels, times 6, in a frame of 1
    second_row_second = picture[51:99, 51:99][::6, ::6]
    assert np.array_equal(second_row_second, to_uint8(images)[11, 0].numpy())


@pytest.mark.parametrize("weights, folder", [("ema", "generator"), ("raw", "generator_raw")])
def test_the_weights_that_are_asked_for(weights: str, folder: str, draw: Draw, finished_run: Path) -> None:
    images, _ = draw(f"weights={weights}", "count=8", "format=npz")
    generator = Generator.from_pretrained(finished_run / folder)
    with torch.no_grad():
        expected = generator(*seeded_inputs(list(range(8)), (1, 8, 8), 10))
    assert torch.equal(images, expected)


def test_the_two_weights_differ(draw: Draw) -> None:
    averaged, _ = draw("weights=ema", "count=8", "format=npz")
    raw, _ = draw("weights=raw", "count=8", "format=npz")
    assert 1e-4 < (averaged - raw).abs().max() < 1


def test_a_generator_without_its_run(draw: Draw, finished_run: Path) -> None:
    with_run, _ = draw("count=4", "format=npz")
    without, _ = draw("count=4", "format=npz", "run=null", f"checkpoint={finished_run / 'generator'}")
    assert torch.equal(with_run, without)


def test_the_teacher_is_drawn_by_the_run_s_sampler(draw: Draw) -> None:
    images, result = draw("model=teacher", "count=6", "seed=3", "format=npz")
    assert result["network_evaluations"] == 3  # two steps of Heun
    sampler = HeunSampler(steps=2, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    expected = sampler(load_teacher("digits", guidance=1.0), *seeded_inputs(list(range(3, 9)), (1, 8, 8), 10))
    assert torch.equal(images, expected)
    other, _ = draw("model=teacher", "count=6", "seed=3", "format=npz", "sampler=heun", "sampler.steps=3")
    assert (other - images).abs().max() > 0.1  # a sampler that is given goes before the run's


def test_classes_are_those_that_are_asked_for(draw: Draw, finished_run: Path) -> None:
    images, _ = draw("classes=[3,7]", "count=5", "seed=1", "format=npz")
    latents, _ = seeded_inputs([1, 2, 3, 4, 5], (1, 8, 8), 10)
    labels = torch.eye(10)[[7, 3, 7, 3, 7]]
    with torch.no_grad():
        expected = Generator.from_pretrained(finished_run / "generator")(latents, labels)
    assert torch.equal(images, expected)


def test_metrics_are_those_of_the_images(draw: Draw) -> None:
    images, result = draw("count=40", "metrics=[fid]", "format=npz")
    evaluator = Evaluator(load_classifier("digits"), {"fid": FrechetDistance()}, Digits())
    assert result.keys() == {"images", "count", "network_evaluations", "samples_per_second", "fid", "figures"}
    assert result["network_evaluations"] == 1
    assert result["fid"] == evaluator([images])["fid"]


def test_the_summary_s_student_is_what_sample_draws(draw: Draw, finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    for model in ("student", "teacher"):
        _, result = draw(f"model={model}", "count=32", "metrics=[fid,recall]", "format=npz", "batch_size=16")
        for key in ("fid", "recall"):
            assert result[key] == pytest.approx(summary[model][key], rel=1e-9)


# The scripts.


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_help_lists_the_groups(script: str) -> None:
    finished = run_python(str(REPOSITORY / script), "--help")
    assert finished.returncode == 0
    lines = finished.stdout.split("The configuration that", 1)[0].splitlines()
    groups = dict(line.split(": ", 1) for line in lines if ": " in line)
    for group in ("objective", "divergence", "discriminator", "teacher", "sampler", "metrics"):
        assert groups[group].split(", ") == sorted(file.stem for file in (REPOSITORY / "conf" / group).glob("*.yaml"))
    assert f"  python {script}" in finished.stdout


def test_from_the_command_line(tmp_path: Path) -> None:
    small = ("device=cpu", "precision=bf16", "training.images=32", "training.batch_size=16", "sampler.steps=2",
             "evaluation.samples=16", "evaluation.grid=10")  # fmt: skip
    trained = run_python(str(REPOSITORY / "train.py"), f"hydra.run.dir={tmp_path / 'run'}", *small)
    assert trained.returncode == 0, trained.stderr
    assert "teacher" in trained.stdout and str(tmp_path / "run").replace("\n", "") in trained.stdout.replace("\n", "")
    networks = load_file(tmp_path / "run" / "checkpoints" / "cycle_00000002" / "generator.safetensors")
    assert {value.dtype for value in networks.values()} == {torch.float32}  # bf16 is the computation's alone
    images = ("count=2", f"run={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'images'}", "device=cpu")
    drawn = run_python(str(REPOSITORY / "sample.py"), *images)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "images" / "000001.png").is_file()


TWO_PROCESSES = """
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file

from onestep.networks.generator import Generator
from onestep.training import distillation

conf, output, *overrides = sys.argv[1:]
update_generator = distillation.update_generator


exit_steps = []
simulate = Generator.simulate


def simulate_and_keep(generator, noises, condition):
    if torch.is_grad_enabled():
        exit_steps.append(len(noises) - 1)
    return simulate(generator, noises, condition)


def update_and_save(parts, cycle, x_generated, *inputs):
    diagnostics = update_generator(parts, cycle, x_generated, *inputs)
    rank = parts.accelerator.process_index
    networks = {f"{name}.{key}": value.contiguous() for name, network in parts.trained_networks.items()
                for key, value in network.state_dict().items()}
    networks |= {"x_generated": x_generated.detach(), "exit_step": torch.tensor(exit_steps[-1])}
    save_file(networks, Path(output) / f"{cycle}_{rank}.safetensors")
    return diagnostics


Generator.simulate = simulate_and_keep
distillation.update_generator = update_and_save
with initialize_config_dir(conf, version_base="1.3"):
    config = compose("train", overrides)
print(distillation.distill(config))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["f_distill", "dmd"])
def test_two_processes_stay_one_run(method: str, dmd: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    overrides = ("device=cpu", "precision=no", "training.images=48", "training.batch_size=16", "sampler.steps=2",
                 "training.warmup_images=0", "training.log_every=1", "training.evaluate_every=2", *FEW_STEPS,
                 "evaluation.samples=32", "evaluation.interim_samples=16", f"output={tmp_path / 'run'}")  # fmt: skip
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(tmp_path / "two.py"))
    finished = run_python(
        *launch, str(REPOSITORY / "conf"), str(tmp_path), *overrides, *(dmd if method == "dmd" else ()),
        PYTHONPATH=str(REPOSITORY),
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    exit_steps = []
    for cycle in range(3):
        first, second = (load_file(tmp_path / f"{cycle}_{rank}.safetensors") for rank in range(2))
        assert first["x_generated"].shape == (8, 1, 8, 8)  # half of the batch each
        assert not torch.equal(first.pop("x_generated"), second.pop("x_generated"))
        assert [key for key, value in first.items() if not torch.equal(value, second[key])] == []
        exit_steps.append(int(first["exit_step"]))  # the same in both, as everything but their images
    assert exit_steps == [draw_exit_step(0, cycle, steps=3) for cycle in range(3)] and len(set(exit_steps)) > 1
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["cycle"] for line in lines if "loss" in line] == [1, 2, 3]
    assert len(list((tmp_path / "pairs").glob("*/images_*"))) == (3 if method == "dmd" else 0)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["images_seen"] == 48

"""Checkpoints of a training state: saving, loading, deletion of old ones, and damage."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from onestep.engine.checkpoint import find_checkpoint, list_checkpoints, write_checkpoint
from onestep.engine.optimizer import GuardedOptimizer
from onestep.engine.state import TrainingState
from onestep.noise import LogUniformSigma
from onestep.objectives.density_ratio import QuantileBins

Optimizer = Callable[..., torch.optim.Optimizer]


def make_state(seed: int) -> TrainingState:
    """A network, a normalizer with float64 buffers, and Adam over two groups; no steps taken."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    normalizer = QuantileBins(LogUniformSigma(0.1, 10.0), bins=3, decay=0.9)
    groups: list[dict[str, Any]] = [
        {"params": list(network[0].parameters())},
        {"params": list(network[1].parameters()), "lr": 3e-3},
    ]
    optimizer = torch.optim.Adam(groups, lr=1e-3, betas=(0.5, 0.99))
    settings: Any = None  # unused
    return TrainingState(
        {"network": network, "normalizer": normalizer}, {"guard": GuardedOptimizer({"network": optimizer}, settings)}
    )


def optimizer_of(state: TrainingState) -> torch.optim.Optimizer:
    return state.optimizers["guard"].optimizers["network"]


def take_steps(state: TrainingState, count: int) -> None:
    """Optimiser steps on data that is a function of the iteration."""
    network, normalizer = state.networks["network"], state.networks["normalizer"]
    assert isinstance(normalizer, QuantileBins)
    for _ in range(count):
        random = torch.Generator().manual_seed(state.iteration)
        output = network(torch.randn(5, 3, generator=random))
        optimizer_of(state).zero_grad()
        output.square().sum().backward()
        optimizer_of(state).step()
        normalizer.update(output[:, 0], torch.rand(5, generator=random) + 0.2)
        state.iteration += 1
        state.seconds += 0.1


def contents(state: TrainingState) -> dict[str, torch.Tensor]:
    """Every tensor that training changes."""
    tensors = {f"{name}.{key}": t for name, net in state.networks.items() for key, t in net.state_dict().items()}
    for index, values in optimizer_of(state).state_dict()["state"].items():
        tensors |= {f"adam.{index}.{key}": value for key, value in values.items()}
    return tensors


def assert_equal(one: TrainingState, other: TrainingState) -> None:
    ours, theirs = contents(one), contents(other)
    assert ours.keys() == theirs.keys() and len(ours) == 4 + 2 + 4 * 3
    assert all(torch.equal(value, theirs[key]) and value.dtype == theirs[key].dtype for key, value in ours.items())
    assert (one.iteration, one.seconds) == (other.iteration, other.seconds)


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    """Bitwise equality, at the checkpoint and three steps later."""
    state, resumed = make_state(seed=0), make_state(seed=1)
    take_steps(state, 4)
    resumed.load(state.save(tmp_path, keep_last=1))
    assert_equal(resumed, state)
    groups = optimizer_of(resumed).param_groups
    assert [(group["lr"], tuple(group["betas"])) for group in groups] == [(1e-3, (0.5, 0.99)), (3e-3, (0.5, 0.99))]
    for one in (state, resumed):
        take_steps(one, 3)
    assert_equal(resumed, state)


def test_a_fused_step_goes_on_in_another_memory_format(tmp_path: Path) -> None:
    """Files are contiguous, and a fused step needs moments with the parameter's memory layout."""

    def make() -> tuple[TrainingState, nn.Parameter]:
        torch.manual_seed(0)
        layer = nn.Conv2d(4, 8, 3, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
        settings: Any = None
        guarded = GuardedOptimizer({"network": optimizer}, settings)
        return TrainingState({"layer": layer}, {"guard": guarded}), layer.weight

    def step(state: TrainingState, weight: nn.Parameter, number: int) -> None:
        optimizer_of(state).zero_grad()
        (weight * torch.arange(weight.numel()).view_as(weight).roll(number)).square().sum().backward()
        optimizer_of(state).step()

    (state, weight), (resumed, other) = make(), make()
    step(state, weight, 0)
    resumed.load(state.save(tmp_path, keep_last=1))
    for one in ((state, weight), (resumed, other)):
        step(*one, 5)
    assert not other.is_contiguous() and torch.equal(weight, other)


def test_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    state = make_state(0)
    for iteration in (5, 90, 100, 1000):  # in numerical order, not in alphabetical order
        state.iteration = iteration
        assert state.save(tmp_path, keep_last=2).is_dir()
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["iteration_00000100", "iteration_00001000"]


def test_a_saved_checkpoint_outlives_leftovers_of_later_iterations(tmp_path: Path) -> None:
    """A run that resumes from one of its older checkpoints."""
    state = make_state(0)
    for iteration in (8, 9, 3):
        state.iteration = iteration
        written = state.save(tmp_path, keep_last=2)
    assert written.name == "iteration_00000003" and written.is_dir()


def test_saving_the_same_iteration_again_replaces_it(tmp_path: Path) -> None:
    state = make_state(0)
    state.save(tmp_path, keep_last=2)
    take_steps(state, 2)
    state.iteration = 0
    restored = make_state(1)
    restored.load(state.save(tmp_path, keep_last=2))
    assert len(list_checkpoints(tmp_path)) == 1
    assert_equal(restored, state)


def test_the_guard_and_the_counters_come_back(tmp_path: Path) -> None:
    state, resumed = make_state(0), make_state(1)
    state.skipped_steps, state.recent_skips, state.rollbacks, state.evaluated = 3, 1.5, 1, False
    state.optimizers["guard"].lr_factor = 0.25
    resumed.load(state.save(tmp_path, keep_last=1))
    assert asdict(resumed) == asdict(state) and resumed.recent_skips == 1.5
    assert resumed.optimizers["guard"].lr_factor == 0.25


def state_of(optimizer: Optimizer, **options: Any) -> tuple[TrainingState, torch.Tensor]:
    """A weight of 1 after a step with the gradient 2."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    network.weight.grad = torch.full((1, 1), 2.0)
    made = optimizer(network.parameters(), **options)
    made.step()
    settings: Any = None
    return TrainingState({"network": network}, {"guard": GuardedOptimizer({"network": made}, settings)}), network.weight


ADAM = torch.optim.Adam


@pytest.mark.parametrize(
    ("saved", "options", "resumed", "new_options", "moved"),
    [
        (ADAM, {"lr": 0.1}, ADAM, {"lr": 0.0}, 0.0),
        (ADAM, {"lr": 0.1}, ADAM, {"lr": 0.3}, 0.3),  # Adam's step for a constant gradient is its rate
        (ADAM, {"lr": 0.1}, torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.5}, 0.1 + 0.9 * 0.05),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5}, torch.optim.SGD, {"lr": 0.2}, 0.4),
        (torch.optim.SGD, {"lr": 0.1}, torch.optim.SGD, {"lr": 0.1, "momentum": 0.5}, 0.2),
        (torch.optim.SGD, {"lr": 0.1}, ADAM, {"lr": 0.2}, 0.2),  # a state that begins
    ],
)
def test_the_options_are_those_of_the_resumed_run(
    saved: Optimizer, options: dict[str, Any], resumed: Optimizer, new_options: dict[str, Any], moved: float,
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = state_of(saved, **options)[0].save(tmp_path, keep_last=1)
    weight_at = load_file(folder / "network.safetensors")["weight"].item()
    state, weight = state_of(resumed, **new_options)
    state.load(folder)
    assert weight.item() == weight_at != 1
    optimizer_of(state).step()
    assert weight_at - weight.item() == pytest.approx(moved, rel=1e-5)


@pytest.mark.parametrize(
    ("saved", "options", "resumed", "new_options", "message"),
    [
        (
            ADAM,
            {},
            torch.optim.SGD,
            {"momentum": 0.5},
            r"of torch\.optim\.adam\.Adam \(exp_avg, .*SGD \(mom",
        ),
        (ADAM, {}, torch.optim.SGD, {}, r"does not fit torch\.optim\.sgd\.SGD \(no state\)"),
        (ADAM, {}, ADAM, {"amsgrad": True}, r"max_exp_avg_sq"),
    ],
)
def test_an_optimizer_of_another_state(
    saved: Optimizer, options: dict[str, Any], resumed: Optimizer, new_options: dict[str, Any], message: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = state_of(saved, **options)[0].save(tmp_path, keep_last=1)
    with pytest.raises(ValueError, match=f"cannot resume from .*the state of optimizer.network.*{message}"):
        state_of(resumed, **new_options)[0].load(folder)


def test_a_snapshot_is_of_its_moment(tmp_path: Path) -> None:
    """The snapshot is written while the training continues."""
    state = make_state(0)
    take_steps(state, 2)
    snapshot = state.snapshot()
    assert snapshot is not None
    reference = make_state(1)
    reference.load(state.save(tmp_path / "at once", keep_last=1))
    take_steps(state, 2)
    resumed = make_state(2)
    resumed.load(write_checkpoint(tmp_path / "later", snapshot, keep_last=1))
    assert_equal(resumed, reference)


def test_find_checkpoint(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    assert find_checkpoint("auto", run) is None
    state = make_state(0)
    first = state.save(run, keep_last=2)
    state.iteration = 7
    second = state.save(run, keep_last=2)
    assert find_checkpoint(None, run) is None
    assert find_checkpoint("auto", run) == second
    assert find_checkpoint(str(run), other) == second
    assert find_checkpoint(str(first), other) == first


@pytest.mark.parametrize("exists", [True, False])
def test_path_without_a_checkpoint(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "typo"
    if exists:
        path.mkdir()
    with pytest.raises(ValueError, match=f"resume={path}: no checkpoint there; give a run's folder"):
        find_checkpoint(str(path), tmp_path)


@pytest.mark.parametrize(
    "file", ["network.safetensors", "network.optimizer.safetensors", "network.optimizer.json", "state.json"]
)
@pytest.mark.parametrize("damage", ["cut", "emptied", "changed", "absent"])
def test_damaged_checkpoint(tmp_path: Path, file: str, damage: str) -> None:
    state = make_state(0)
    take_steps(state, 1)
    folder = state.save(tmp_path, keep_last=1)
    content = (folder / file).read_bytes()
    changed = content.replace(b"0", b"1", 1) if file.endswith(".json") else content[:-1] + bytes([content[-1] ^ 1])
    damaged = {"cut": content[: len(content) // 2], "changed": changed}
    (folder / file).write_bytes(damaged.get(damage, b""))
    if damage == "absent":
        (folder / file).unlink()
    with pytest.raises(ValueError, match=f"cannot resume from {folder}"):
        make_state(1).load(folder)


@pytest.mark.parametrize(
    ("names", "features", "message"),
    [
        (("network",), 5, "size mismatch for weight"),
        (("network", "other"), 2, "holds network, and this run trains network, other"),
    ],
)
def test_checkpoint_of_other_networks(tmp_path: Path, names: tuple[str, ...], features: int, message: str) -> None:
    folder = TrainingState({"network": nn.Linear(3, 2)}, {}).save(tmp_path, keep_last=1)
    other = TrainingState({name: nn.Linear(3, features) for name in names}, {})
    with pytest.raises(ValueError, match=f"cannot resume from {folder}: .*{message}") as caught:
        other.load(folder)
    assert "\n" not in str(caught.value)


def test_the_state_of_other_parameters(tmp_path: Path) -> None:
    state, smaller = make_state(0), make_state(0)
    take_steps(state, 1)
    del optimizer_of(smaller).param_groups[1]
    with pytest.raises(ValueError, match=r"network\.optimizer: 2\..* is the state of no parameter"):
        smaller.load(state.save(tmp_path, keep_last=1))


def test_nothing_is_pickled(tmp_path: Path) -> None:
    folder = make_state(0).save(tmp_path, keep_last=1)
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}

"""Dropout of the generator and the fake score: where it is active, its masks, and that nothing of it remains."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onestep.build.distillation import build_distillation, distill
from onestep.distillation.parts import Distillation
from onestep.engine.optimizer import GuardedOptimizer, SkippedStepError
from onestep.models.dropout import dropout, set_dropout
from tests.helpers.configs import FEW_STEPS, TWO_ITERATIONS, refused, tiny_config
from tests.helpers.edm_models import tiny_denoiser
from tests.helpers.killed_run import assert_same_checkpoint, distill_until_iteration_5
from tests.helpers.updates import as_process, take_updates

OF_BOTH = ("generator.dropout=0.2", "fake_score.dropout=0.3")
SMALL = (*TWO_ITERATIONS, "metrics=[]", "features=null", "objective=sida", "discriminator=channel_mean")


def dropouts(network: Any) -> list[nn.Dropout]:
    return [module for module in network.modules() if isinstance(module, nn.Dropout)]


class Passes:
    """Whether dropout was active in each pass of the networks, and with a graph: of the first dropout layer of each."""

    def __init__(self, parts: Distillation) -> None:
        self.seen: dict[str, list[tuple[bool, bool]]] = {}
        self.masks: dict[str, list[Tensor]] = {}
        networks = {"generator": parts.student, "fake_score": parts.method.fake_score, "teacher": parts.method.teacher}
        for name, network in networks.items():
            self.seen[name], self.masks[name] = [], []
            dropouts(network)[0].register_forward_hook(self._keeper(name))

    def _keeper(self, name: str) -> Any:
        def keep(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            self.seen[name].append((layer.training, torch.is_grad_enabled()))
            self.masks[name].append((output == 0) & (inputs[0] != 0))

        return keep


def of(*passes: str) -> list[tuple[bool, bool]]:
    """``"train"`` or ``"eval"``, with ``"*"`` for one with a graph."""
    return [(one.startswith("train"), one.endswith("*")) for one in passes]


EXPECTED = {
    # critics: generated and real images; generator: the scores
    "shared": (("train*",), ("train*", "train*", "eval*")),
    "separate": (("eval", "train*"), ("train*", "train*", "eval*")),
    "generator_first": (("train*",), ("eval*", "train*", "train*")),
}


@pytest.mark.parametrize("schedule", EXPECTED)
def test_it_is_active_in_the_networks_own_update(schedule: str, tmp_path: Path) -> None:
    parts = build_distillation(tiny_config(tmp_path, *SMALL, *OF_BOTH, f"schedule={schedule}"))
    passes = Passes(parts)
    list(take_updates(parts))
    generator, fake_score = EXPECTED[schedule]
    assert passes.seen["generator"] == of(*generator) and passes.seen["fake_score"] == of(*fake_score)
    assert passes.seen["teacher"] == of("eval*")
    networks = (
        parts.student.denoiser,
        parts.method.fake_score,
        parts.method.teacher,
        parts.averages.networks["ema"].denoiser,
    )
    assert not any(module.training for network in networks for module in network.modules())  # type: ignore[union-attr]
    assert {layer.p for layer in dropouts(parts.student)} == {0.2}
    assert {layer.p for layer in dropouts(parts.method.fake_score)} == {0.3}
    assert {layer.p for layer in dropouts(parts.method.teacher)} == {0.0}
    for name, probability in (("generator", 0.2), ("fake_score", 0.3)):
        share = torch.cat([mask.flatten() for mask in passes.masks[name] if mask.any()]).double().mean().item()
        assert share == pytest.approx(probability, abs=0.05)
    first, second = [mask for mask in passes.masks["fake_score"] if mask.any()]
    assert not torch.equal(first, second)


def test_a_generator_that_stands_still_makes_samples_without_it(tmp_path: Path) -> None:
    parts = build_distillation(tiny_config(tmp_path, *SMALL, *OF_BOTH, "generator.starts_at=8"))
    passes = Passes(parts)
    list(take_updates(parts))
    assert passes.seen["generator"] == of("eval")


def test_the_earlier_steps_of_a_generator_are_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onestep.distillation.loop.exit_step", lambda *_: 2)
    parts = build_distillation(tiny_config(tmp_path, *SMALL, *OF_BOTH, *FEW_STEPS))
    passes = Passes(parts)
    list(take_updates(parts))
    assert passes.seen["generator"] == of("eval", "eval", "train*")


def test_a_repeated_pass_has_the_same_masks(tmp_path: Path) -> None:
    """Of micro-batches, and of activations that are computed again in the backward pass."""
    overrides = ("training.accumulation=2", "gradient_checkpointing=true")
    parts = build_distillation(tiny_config(tmp_path, *SMALL, *OF_BOTH, *overrides))
    passes = Passes(parts)
    list(take_updates(parts))
    assert len(passes.masks["generator"]) == 6  # two micro-batches: samples, pass with a graph, computed again
    first, second, *again = passes.masks["generator"]
    assert all(torch.equal(mask, first) for mask in again[:2]) and all(torch.equal(mask, second) for mask in again[2:])
    assert not torch.equal(first, second)


def test_no_two_updates_have_the_same_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor two iterations, micro-batches, processes or seeds."""
    sizes = ("fake_score.steps=2", "training.accumulation=2")
    masks = []
    for rank, seed in ((0, 0), (1, 0), (0, 1)):
        as_process(monkeypatch, rank, 2)
        parts = build_distillation(tiny_config(tmp_path, *SMALL, *OF_BOTH, *sizes, f"seed={seed}"))
        passes = Passes(parts)
        list(take_updates(parts, iterations=2))
        masks += [mask.numpy().tobytes() for mask in passes.masks["fake_score"] if mask.any()]
    assert len(set(masks)) == len(masks) == 3 * 2 * 2 * 2 * 2  # the last: generated and real images


def norms(parts: Distillation, iterations: int = 1) -> list[float]:
    updates = take_updates(parts, iterations)
    return [value.item() for update in updates for name, value in update.items() if name.endswith("_gradient")]


def test_it_is_a_function_of_seed_and_iteration_and_draws_nothing_else(tmp_path: Path) -> None:
    def run(*overrides: str) -> list[float]:
        torch.manual_seed(len(overrides))  # whatever came before
        parts = build_distillation(tiny_config(tmp_path, *SMALL, *overrides))
        torch.rand(len(overrides))
        return norms(parts)

    once = run(*OF_BOTH)
    assert once == run(*OF_BOTH, "training.log_every=2")
    without = run()
    assert once != pytest.approx(without, rel=1e-3)
    # The fake score's update comes first: the generator's dropout of other samples changes it, and not the reverse.
    assert run("fake_score.dropout=0.3", "schedule=separate")[0] == run(*OF_BOTH, "schedule=separate")[0]


def test_a_resumed_run_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (*SMALL, *OF_BOTH, "training.total_images=24", "training.checkpoint_every=3")
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    distill(tiny_config(straight, *overrides))
    distill_until_iteration_5(monkeypatch, tiny_config(resumed, *overrides))
    torch.manual_seed(5)
    distill(tiny_config(resumed, *overrides, "resume=auto"))
    assert_same_checkpoint(*(folder / "checkpoints" / "iteration_00000006" for folder in (straight, resumed)))


@pytest.mark.parametrize("fault", ["step", "backward"])
def test_nothing_of_it_remains_after_an_update_that_ends_early(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SkippedStepError({"loss": float("nan")}, [], overflow=False)

    parts = build_distillation(tiny_config(tmp_path, *SMALL, *OF_BOTH))
    monkeypatch.setattr(GuardedOptimizer, fault, fail)
    with pytest.raises(SkippedStepError):
        list(take_updates(parts))
    assert not any(layer.training for layer in (*dropouts(parts.student), *dropouts(parts.method.fake_score)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("generator.dropout=1",), r"generator\.dropout=1: expected a number of at least 0 and below 1"),
        (("experiment=mixture", "generator.dropout=0.1"), r"generator\.dropout=0\.1: \w+ has no dropout layers: set"),
        (("experiment=mixture", "fake_score.dropout=0.1"), r"fake_score\.dropout=0\.1: \w+ has no dropout layers: set"),
        (
            ("objective=sds", "fake_score.dropout=0.1"),
            r"fake_score\.dropout=0\.1 has no effect: this objective has no",
        ),
    ],
)
def test_what_it_needs(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    said = refused(tiny_config(tmp_path, *overrides))
    assert re.search(message, said), said
    assert "\n" not in said


def test_other_modules_stay_in_eval_mode() -> None:
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout2d(0.1), nn.Linear(4, 4), nn.Dropout(0.1)).eval()
    set_dropout([network], 0.5, "p")
    network[3].train()

    def modes() -> Iterator[bool]:
        return iter([module.training for module in network])

    with dropout([network], active=True):
        assert [*modes()] == [False, True, False, True] and not network.training
        with dropout([network], active=False):
            assert not any(modes())
    assert [*modes()] == [False, False, False, True]
    assert network[1].p == network[3].p == 0.5


def test_a_compiled_network_has_two_graphs() -> None:
    torch._dynamo.reset()
    counters: Any = torch._dynamo.utils.counters
    counters.clear()
    network = tiny_denoiser(channel_mult=[1])
    set_dropout([network], 0.3, "p")
    network.compile(backend="eager")
    inputs = torch.randn(2, 1, 8, 8), torch.ones(2), {"labels": torch.eye(3)[:2]}
    for _ in range(2):
        without = network(*inputs)
        with dropout([network], active=True):
            torch.manual_seed(0)
            first = network(*inputs)
            torch.manual_seed(0)
            assert torch.equal(first, network(*inputs)) and not torch.equal(first, without)
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]

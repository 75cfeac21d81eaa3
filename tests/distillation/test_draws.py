"""The random numbers of an iteration: what each term of the losses gets, and each process its rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onestep.build.distillation import build_distillation
from onestep.data.dataset import PositionSampler, TrainingDataset
from onestep.distillation.method import Method
from onestep.distillation.pairs import TeacherPairs
from onestep.engine.batches import Batches
from tests.helpers.configs import FEW_STEPS, tiny_config
from tests.helpers.updates import as_process, take_updates

OF_THEIR_OWN = ("discriminator.real_noise=own_level", "discriminator.generated_noise=own_level",
                "generator.gan_level=own", "generator.gan_weight=0.1", "generator.labels=uniform")  # fmt: skip
CRITICS = ("x_generated", "x_real", "condition", "noised", "noised_real", "noised_generated", "condition_real",
           "numbers")  # fmt: skip
GENERATOR = ("x_generated", "condition", "noised", "weight_scale", "noised_gan", "numbers")

Inputs = dict[str, Any]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Inputs]:
    """The inputs of the losses of each micro-batch, by name, in order."""
    kept: list[Inputs] = []
    for name, arguments in (("critic_losses", CRITICS), ("generator_losses", GENERATOR)):
        losses = getattr(Method, name)

        def recorded(method: Method, *inputs: Any, _losses: Any = losses, _names: Any = arguments) -> Any:
            kept.append(dict(zip(_names, inputs, strict=True)))
            return _losses(method, *inputs)

        monkeypatch.setattr(Method, name, recorded)
    return kept


@pytest.mark.parametrize("generated_noise", ["shared", "own_level"])
@pytest.mark.parametrize("real_noise", ["same", "own_noise", "own_level"])
def test_the_noise_of_the_critics(real_noise: str, generated_noise: str, kept: list[Inputs], tmp_path: Path) -> None:
    overrides = (f"discriminator.real_noise={real_noise}", f"discriminator.generated_noise={generated_noise}")
    list(take_updates(build_distillation(tiny_config(tmp_path, "generator.gan_weight=0.1", *overrides))))
    noised, real, generated = (kept[0][name] for name in ("noised", "noised_real", "noised_generated"))
    assert [torch.equal(ours, theirs) for ours, theirs in zip(noised, real, strict=True)] == {
        "same": [True, True], "own_noise": [True, False], "own_level": [False, False],
    }[real_noise]  # fmt: skip
    assert (generated is None) is (generated_noise == "shared")
    assert generated is None or not any(torch.equal(generated[i], other[i]) for other in (noised, real) for i in (0, 1))


def test_the_laws_of_the_levels(kept: list[Inputs], tmp_path: Path) -> None:
    """That of ``sigma`` is the objective's alone; ``fake_sigma`` is for the critics and the adversarial term."""
    laws = ("sigma.sigma_min=1", "sigma.sigma_max=2", "fake_sigma.sigma_min=3", "fake_sigma.sigma_max=4")
    list(take_updates(build_distillation(tiny_config(tmp_path, *OF_THEIR_OWN, *laws))))
    critics, generator = kept
    for noised, low in (
        *((critics[name], 3) for name in ("noised", "noised_real", "noised_generated")),
        (generator["noised"], 1), (generator["noised_gan"], 3),
    ):  # fmt: skip
        assert low <= noised.sigma.min() < noised.sigma.max() <= low + 1


def test_each_iteration_reads_its_own_pairs(
    dmd: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    batch = TeacherPairs.batch

    def read(pairs: TeacherPairs, iteration: int) -> Any:
        asked.append(iteration)
        return batch(pairs, iteration)

    monkeypatch.setattr(TeacherPairs, "batch", read)
    list(take_updates(build_distillation(tiny_config(tmp_path, *dmd)), iterations=3))
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("start", [0, 2])
def test_the_batches_follow_the_order_of_the_seed_wherever_a_run_resumes(start: int, tmp_path: Path) -> None:
    """Three in each iteration."""
    parts = build_distillation(tiny_config(tmp_path, "seed=7"))
    data = parts.data
    assert isinstance(data, TrainingDataset)
    order = [indices for indices, _ in zip(PositionSampler(len(data), 16, seed=7), range(12), strict=False)]
    iterations = Batches(parts.run, parts.settings, data, per_iteration=3).start_at(start)
    for iteration, batches in zip(range(start, 4), iterations, strict=False):
        for indices, (images, condition) in zip(order[3 * iteration : 3 * iteration + 3], batches, strict=True):
            expected, labels = data.__getitems__(indices)
            assert images is not None and expected is not None and torch.equal(images, expected)
            assert torch.equal(condition["labels"], labels["labels"])


def test_two_processes_have_the_rows_of_one(
    kept: list[Inputs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of samples, conditions, images, levels and noise of every update; the networks stand still."""
    still = ("optimizer.generator.lr=0", "optimizer.fake_score.lr=0", "optimizer.discriminator.lr=0")
    found = []
    for rank, processes in ((0, 1), (0, 2), (1, 2)):
        as_process(monkeypatch, rank, processes)
        kept.clear()
        list(take_updates(build_distillation(tiny_config(tmp_path, *FEW_STEPS, *OF_THEIR_OWN, *still)), iterations=4))
        found.append([_tensors(inputs) for inputs in kept])
    one, *shares = found
    assert len(one) == 8 and [len(update) for update in one] == [10, 6] * 4
    for full, *parts in zip(one, *shares, strict=True):
        for tensor, *rows in zip(full, *parts, strict=True):
            torch.testing.assert_close(torch.cat(rows), tensor, rtol=1e-5, atol=1e-5)


def _tensors(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs.detach()]
    if isinstance(inputs, dict):
        inputs = inputs.values()
    return [] if inputs is None else [tensor for one in inputs for tensor in _tensors(one)]

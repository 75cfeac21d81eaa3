"""The learning rate schedule, and the guarded optimiser step."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from onestep.engine.clipping import Clipping, Entries, JointNorm, NormOfEach
from onestep.engine.optimizer import BadSample, GuardedOptimizer, SkippedStepError, lr_factor
from onestep.engine.settings import TrainingSettings
from onestep.engine.shard import full_tensor, shard
from onestep.objectives.losses import Losses, Term
from tests.helpers.updates import make_settings

Settings = Callable[..., TrainingSettings]


def test_lr_without_warmup_and_decay_is_constant() -> None:
    assert {lr_factor(make_settings(), images) for images in (0, 500, 1000, 2000)} == {1.0}


def test_lr_warms_up_linearly() -> None:
    settings = make_settings(warmup_images=200)
    assert [lr_factor(settings, images) for images in (0, 50, 200, 900)] == pytest.approx([0, 0.25, 1, 1])


def test_the_warm_up_of_dmd2() -> None:
    """Its scheduler counts 500 calls: one for each of 7 processes in each of 5 steps to a step of the generator."""
    settings = make_settings(total_images=56_000, batch_size=280, warmup_images=4000)
    factors = [lr_factor(settings, update * settings.batch_size) for update in range(16)]
    assert factors == pytest.approx([min(1, update * 5 * 7 / 500) for update in range(16)])


def test_lr_decays_by_a_cosine_to_its_final_share() -> None:
    settings = make_settings(final_lr=0.1)
    expected = [1, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.55, 0.1, 0.1, 0.1]
    assert [lr_factor(settings, images) for images in (0, 250, 500, 1000, 1500, 2000)] == pytest.approx(expected)


def test_warmup_and_decay_multiply() -> None:
    settings = make_settings(warmup_images=1000, final_lr=0.2)
    assert lr_factor(settings, 500) == pytest.approx(0.5 * 0.6)


@pytest.fixture
def weights() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, 2.0]))


SIGMA = torch.tensor([0.5, 2.0])
STRETCH = torch.tensor([0.5, 1.5])  # of two samples, whose mean is 1


def guard(optimizer: torch.optim.Optimizer, settings: TrainingSettings, **options: Any) -> GuardedOptimizer:
    """The optimiser of one network."""
    return GuardedOptimizer({"network": optimizer}, settings, **options)


def terms_of(weights: Tensor, factor: float = 1.0) -> dict[str, Term]:
    """Two terms; the sum of their gradients is ``factor`` times (3, 4), of norm 5."""
    losses = {"first": Term(3 * weights[0] * STRETCH), "second": Term(weights[1] * STRETCH, weight=4.0)}
    return {name: Term(factor * term.losses, term.weight) for name, term in losses.items()}


def take_step(optimizer: GuardedOptimizer, terms: dict[str, Term], iteration: int = 0) -> float:
    """The norm of the gradient."""
    optimizer.backward(Losses(terms), SIGMA)
    (norm,) = optimizer.step(iteration).values()
    assert not norm.requires_grad
    return norm.item()


@pytest.mark.parametrize(
    "clip, gradient",
    [(None, [3, 4]), (NormOfEach(10.0), [3, 4]), (NormOfEach(1.0), [0.6, 0.8]), (Entries(3.5), [3, 3.5])],
)
@pytest.mark.parametrize("fp16", [False, True])
def test_step_descends_the_sum_of_the_clipped_terms(
    weights: nn.Parameter, clip: Clipping | None, gradient: list[float], fp16: bool
) -> None:
    """The reported norm is that before clipping; fp16's scale is undone before."""
    optimizer = guard(torch.optim.SGD([weights], lr=0.1), make_settings(), clip=clip, fp16=fp16)
    assert take_step(optimizer, terms_of(weights)) == pytest.approx(5)
    expected = [1 - 0.1 * gradient[0], 2 - 0.1 * gradient[1]]
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)


def test_micro_batches_add_up_to_their_mean(weights: nn.Parameter) -> None:
    """Gradients (3, 4) and (9, 12): the mean is (6, 8), of norm 10, whose entries are clipped to 7."""
    optimizer = guard(torch.optim.SGD([weights], lr=0.1), make_settings(accumulation=2), clip=Entries(7.0))
    optimizer.backward(Losses(terms_of(weights)), SIGMA)
    assert take_step(optimizer, terms_of(weights, factor=3)) == pytest.approx(10)
    assert weights.tolist() == pytest.approx([0.4, 1.3])


def test_processes_add_up_to_their_mean(weights: nn.Parameter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients (3, 4) here and twice that in another process: the mean is (4.5, 6), of norm 7.5."""
    monkeypatch.setattr("onestep.processes.rank_and_count", lambda: (0, 2))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.mul_(3))
    optimizer = guard(torch.optim.SGD([weights], lr=0.1), make_settings(), clip=Entries(5.0))
    assert take_step(optimizer, terms_of(weights)) == pytest.approx(7.5)
    assert weights.tolist() == pytest.approx([0.55, 1.5])


def test_gradients_of_earlier_backward_passes_do_not_enter(weights: nn.Parameter) -> None:
    weights.grad = torch.full((2,), 100.0)
    take_step(guard(torch.optim.SGD([weights], lr=0.1), make_settings()), terms_of(weights))
    assert weights.tolist() == pytest.approx([0.7, 1.6])


def test_every_groups_lr_follows_the_course(weights: nn.Parameter) -> None:
    other = nn.Parameter(torch.zeros(2))
    sgd = torch.optim.SGD([{"params": [weights], "lr": 0.4}, {"params": [other], "lr": 0.02}], lr=1.0)
    optimizer = guard(sgd, make_settings(warmup_images=200))  # ten iterations are half of it
    for iteration in (3, 10):  # relative to the initial rate, not to the previous one
        take_step(optimizer, terms_of(weights) | {"third": Term(other)}, iteration)
    assert [group["lr"] for group in sgd.param_groups] == pytest.approx([0.2, 0.01])
    optimizer.lr_factor = 0.5  # as after a rollback
    take_step(optimizer, terms_of(weights) | {"third": Term(other)}, 10)
    assert [group["lr"] for group in sgd.param_groups] == pytest.approx([0.1, 0.005])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_term_is_skipped_and_changes_nothing(weights: nn.Parameter, value: float) -> None:
    adam = torch.optim.Adam([weights], lr=0.1)
    optimizer = guard(adam, make_settings(accumulation=2))
    optimizer.backward(Losses(terms_of(weights)), SIGMA)
    take_step(optimizer, terms_of(weights), iteration=6)
    before = weights.detach().clone()
    moments = {name: moment.clone() for name, moment in adam.state[weights].items()}
    optimizer.backward(Losses(terms_of(weights) | {"adversarial": Term(weights.sum() * STRETCH)}), SIGMA)
    bad = weights.sum() * torch.tensor([1.0, value])  # the second sample of the second micro-batch
    with pytest.raises(SkippedStepError) as skipped:
        take_step(optimizer, terms_of(weights) | {"adversarial": Term(bad)}, iteration=7)
    assert skipped.value.samples == [BadSample("adversarial", position=3, sigma=2.0)] and not skipped.value.overflow
    assert not math.isfinite(skipped.value.values["adversarial"]) and skipped.value.values["first"] == before[0] * 3
    assert torch.equal(weights, before)
    assert all(torch.equal(moment, moments[name]) for name, moment in adam.state[weights].items())
    optimizer.backward(Losses(terms_of(weights)), SIGMA)  # the skipped step left no gradients
    assert take_step(optimizer, terms_of(weights), iteration=7) == pytest.approx(5)


def test_non_finite_gradient_of_a_finite_term() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = guard(torch.optim.SGD([weight], lr=0.1), make_settings())
    with pytest.raises(SkippedStepError, match=r"'root': 0\.0, 'network_gradient': inf") as skipped:
        take_step(optimizer, {"root": Term(weight.sqrt())})
    assert weight.item() == 0 and skipped.value.samples == []


# fp16's loss scale does not change the gradient of a step, and small gradients do not underflow.


class HalfGradient(torch.autograd.Function):
    """The identity with a gradient in fp16, like a network under autocast."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.half().float()


def half_terms(weight: nn.Parameter, factor: float) -> dict[str, Term]:
    return {"loss": Term(HalfGradient.apply(weight) * factor * torch.ones(2))}


@pytest.mark.parametrize("fp16, gradient", [(False, 0.0), (True, 1e-8)])
def test_a_gradient_below_half_precision(fp16: bool, gradient: float) -> None:
    """1e-8 underflows to 0 in fp16; times 65536 it is 6.6e-4."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = guard(torch.optim.SGD([weight], lr=1.0), make_settings(), fp16=fp16)
    take_step(optimizer, half_terms(weight, 1e-8))
    assert weight.item() == pytest.approx(-gradient, rel=1e-3)


def test_overflow_halves_the_scale_of_this_optimizer_alone() -> None:
    weight, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizers = [guard(torch.optim.SGD([w], lr=1.0), make_settings(), fp16=True) for w in (weight, other)]
    for _ in range(2):  # 3 * 65536 and 3 * 32768 exceed 65504, fp16's largest number
        with pytest.raises(SkippedStepError) as skipped:
            take_step(optimizers[0], half_terms(weight, 3.0))
        assert skipped.value.overflow and weight.item() == 0
    take_step(optimizers[0], half_terms(weight, 3.0))
    assert weight.item() == pytest.approx(-3.0)
    assert [optimizer.loss_scale for optimizer in optimizers] == [2.0**14, 2.0**16]
    for _ in range(1999):
        take_step(optimizers[0], half_terms(weight, 0.0))
    assert optimizers[0].loss_scale == 2.0**15
    resumed = guard(torch.optim.SGD([weight], lr=1.0), make_settings(), fp16=True)
    resumed.load_state(optimizers[0].state())
    assert resumed.loss_scale == 2.0**15


def test_a_term_that_is_not_finite_is_no_overflow(weights: nn.Parameter) -> None:
    optimizer = guard(torch.optim.SGD([weights], lr=1.0), make_settings(), fp16=True)
    with pytest.raises(SkippedStepError) as skipped:
        take_step(optimizer, {"loss": Term(weights.sum() * torch.tensor([math.nan, 1.0]))})
    assert not skipped.value.overflow and optimizer.loss_scale == 2.0**16


@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize(
    "clip, gradient", [(None, 3), (NormOfEach(3.0), 1.5), (JointNorm(2.0), 1), (Entries(2.5), 2.5)]
)
def test_full_and_sharded_parameters_of_one_optimizer(
    clip: Clipping | None, gradient: float, fp16: bool, tmp_path: Path
) -> None:
    """A sharded fake score and its discriminator: all gradients of (h1 + h2) (w . x) are 3, and their norm is 6."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network, head = nn.Linear(2, 1, bias=False), nn.Parameter(torch.tensor([1.0, 2.0]))
        network.weight.data = torch.tensor([[1.0, 2.0]])
        shard(network, init_device_mesh("cpu", (1,)))
        parameters = [*network.parameters(), head]
        optimizer = guard(
            torch.optim.SGD([{"params": [p]} for p in parameters], lr=0.1),
            make_settings(),
            clip=clip,
            fp16=fp16,
            networks=[network],
        )
        norm = take_step(optimizer, {"product": Term((head * network(torch.ones(2, 2))).sum(1))})
        assert norm == pytest.approx(6)
        expected = pytest.approx([1 - 0.1 * gradient, 2 - 0.1 * gradient])
        assert full_tensor(network.weight).flatten().tolist() == expected
        assert head.tolist() == expected
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "clip, gradients",
    [
        (None, (3, 4)),
        (NormOfEach(1.0), (1, 1)),
        (JointNorm(1.0), (0.6, 0.8)),
        (JointNorm(10.0), (3, 4)),
        (Entries(3.5), (3, 3.5)),
    ],
)
def test_clipping_of_optimizers_of_one_backward_pass(clip: Clipping | None, gradients: tuple[float, float]) -> None:
    """Gradients 3 and 4, whose norms are reported before clipping."""
    slow, fast = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizers = {"slow": torch.optim.SGD([slow], lr=0.1), "fast": torch.optim.SGD([fast], lr=0.5)}
    optimizer = GuardedOptimizer(optimizers, make_settings(), clip)
    optimizer.backward(Losses({"first": Term(3 * slow * STRETCH), "second": Term(fast * STRETCH, weight=4.0)}), SIGMA)
    norms = {name: norm.item() for name, norm in optimizer.step(0).items()}
    assert norms == pytest.approx({"slow_gradient": 3, "fast_gradient": 4})
    assert [slow.item(), fast.item()] == pytest.approx([-0.1 * gradients[0], -0.5 * gradients[1]], rel=1e-5)


def test_a_step_that_one_optimizer_cannot_take_is_skipped_by_all() -> None:
    good, bad = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizers = {"good": torch.optim.SGD([good], lr=0.1), "bad": torch.optim.SGD([bad], lr=0.1)}
    optimizer = GuardedOptimizer(optimizers, make_settings())
    optimizer.backward(Losses({"good": Term(good * STRETCH), "bad": Term(bad.sqrt() * STRETCH)}), SIGMA)
    with pytest.raises(SkippedStepError) as skipped:
        optimizer.step(0)
    assert skipped.value.values == {"good": 0, "bad": 0, "good_gradient": 1, "bad_gradient": math.inf}
    assert good.item() == bad.item() == 0

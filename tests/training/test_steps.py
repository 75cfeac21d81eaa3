"""The learning rate's course, and the guarded optimiser step."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from onestep.training.settings import DistillationSettings
from onestep.training.steps import lr_factor, optimizer_step

Settings = Callable[..., DistillationSettings]


def test_lr_without_warmup_and_decay_is_constant(make_settings: Settings) -> None:
    assert {lr_factor(make_settings(), images) for images in (0, 500, 1000, 2000)} == {1.0}


def test_lr_warms_up_linearly(make_settings: Settings) -> None:
    settings = make_settings(warmup_images=200)
    assert [lr_factor(settings, images) for images in (0, 50, 200, 900)] == pytest.approx([0, 0.25, 1, 1])


def test_lr_decays_by_a_cosine_to_its_final_share(make_settings: Settings) -> None:
    settings = make_settings(final_lr=0.1)
    expected = [1, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.55, 0.1, 0.1]
    assert [lr_factor(settings, images) for images in (0, 250, 500, 1000, 5000)] == pytest.approx(expected)


def test_warmup_and_decay_multiply(make_settings: Settings) -> None:
    settings = make_settings(warmup_images=1000, final_lr=0.2)
    assert lr_factor(settings, 500) == pytest.approx(0.5 * 0.6)


@pytest.fixture
def weights() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, 2.0]))


def terms_of(weights: Tensor) -> dict[str, Tensor]:
    """Two terms, whose gradients add up to (3, 4), of norm 5."""
    return {"first": 3 * weights[0], "second": 4 * weights[1]}


@pytest.mark.parametrize("grad_clip, gradient", [(10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])])
def test_step_descends_the_sum_of_the_clipped_terms(
    make_settings: Settings, weights: nn.Parameter, grad_clip: float, gradient: list[float]
) -> None:
    optimizer = torch.optim.SGD([weights], lr=0.1)
    norm = optimizer_step(optimizer, terms_of(weights), make_settings(grad_clip=grad_clip), cycle=0)
    assert norm.item() == pytest.approx(5) and not norm.requires_grad
    expected = [1 - 0.1 * gradient[0], 2 - 0.1 * gradient[1]]
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)


def test_gradients_of_earlier_backward_passes_do_not_enter(make_settings: Settings, weights: nn.Parameter) -> None:
    weights.grad = torch.full((2,), 100.0)
    optimizer_step(torch.optim.SGD([weights], lr=0.1), terms_of(weights), make_settings(), cycle=0)
    assert weights.tolist() == pytest.approx([0.7, 1.6])


def test_every_groups_lr_follows_the_course(make_settings: Settings, weights: nn.Parameter) -> None:
    other = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([{"params": [weights], "lr": 0.4}, {"params": [other], "lr": 0.02}], lr=1.0)
    settings = make_settings(warmup_images=200)  # ten cycles are half of it
    for cycle in (3, 10):  # each from the initial rate, not from the one before
        optimizer_step(optimizer, terms_of(weights) | {"third": other}, settings, cycle)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.01])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_term_stops_the_run_and_changes_nothing(
    make_settings: Settings, weights: nn.Parameter, value: float
) -> None:
    optimizer = torch.optim.Adam([weights], lr=0.1)
    optimizer_step(optimizer, terms_of(weights), make_settings(), cycle=6)
    before = weights.detach().clone()
    moments = {name: moment.clone() for name, moment in optimizer.state[weights].items()}
    terms = terms_of(weights) | {"adversarial": weights.sum() * value}
    with pytest.raises(ValueError, match=rf"non-finite value in cycle 7: .*'adversarial': {value}.*resume=auto"):
        optimizer_step(optimizer, terms, make_settings(), cycle=7)
    assert torch.equal(weights, before)
    assert all(torch.equal(moment, moments[name]) for name, moment in optimizer.state[weights].items())


def test_non_finite_gradient_of_a_finite_term(make_settings: Settings) -> None:
    weight = nn.Parameter(torch.zeros(()))
    with pytest.raises(ValueError, match=r"'root': 0\.0, 'gradient norm': inf"):
        optimizer_step(torch.optim.SGD([weight], lr=0.1), {"root": weight.sqrt()}, make_settings(), cycle=0)
    assert weight.item() == 0

"""Every divergence's weight against its f in float64, and without overflow in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from onestep.config import CONF, instantiate
from onestep.objectives.divergences import (
    Alpha,
    CustomDivergence,
    Divergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SoftenedReverseKL,
)


def alpha_f(a: float) -> Callable[[Any], Any]:
    return lambda r: (r**a - a * r + a - 1) / (mpmath.mpf(a) * (a - 1))


# f as in the papers, for mpmath, by the name of the choice: written independently of onestep.objectives.divergences.
CHOICES: dict[str, Callable[[Any], Any]] = {
    "reverse_kl": lambda r: -mpmath.log(r),
    "forward_kl": lambda r: r * mpmath.log(r),
    "jeffreys": lambda r: (r - 1) * mpmath.log(r),
    "jensen_shannon": lambda r: r * mpmath.log(r) - (r + 1) * mpmath.log((r + 1) / 2),
    "softened_reverse_kl": lambda r: (r + 1) * mpmath.log((r + 1) / (2 * r)),
    "squared_hellinger": lambda r: 1 - mpmath.sqrt(r),
    "pearson_chi2": lambda r: (r - 1) ** 2,
    "neyman_chi2": lambda r: (1 - r) ** 2 / r,
    "le_cam": lambda r: (r - 1) ** 2 / (r + 1),
    "alpha": alpha_f(0.5),
    "custom": lambda r: r**2,
}
FILES = CONF / "divergence"
CUSTOM = {"custom": {"f": "torch.square"}}
TABLE: list[tuple[Divergence, Callable[[Any], Any]]] = [
    *(
        (instantiate(OmegaConf.merge(OmegaConf.load(FILES / f"{name}.yaml"), CUSTOM.get(name, {}))), f)
        for name, f in CHOICES.items()
    ),
    (Alpha(-2.0), alpha_f(-2.0)),
    (Alpha(-0.5), alpha_f(-0.5)),
    (Alpha(0.0), lambda r: r - 1 - mpmath.log(r)),
    (Alpha(0.3), alpha_f(0.3)),
    (Alpha(1.0), lambda r: r * mpmath.log(r) - r + 1),
    (Alpha(1.5), alpha_f(1.5)),
    (Alpha(2.0), alpha_f(2.0)),
]
IDS = [f"{type(d).__name__}{getattr(d, 'alpha', '')}" for d, _ in TABLE]
table = pytest.mark.parametrize("divergence, f", TABLE, ids=IDS)
divergences = pytest.mark.parametrize("divergence", [d for d, _ in TABLE], ids=IDS)
LOG_R = torch.linspace(-6, 6, 49, dtype=torch.float64) * torch.log(torch.tensor(10.0, dtype=torch.float64))
LOG_E = torch.tensor([1.0], dtype=torch.float64)


def high_precision(function: Callable[[Any], Any], log_ratio: Tensor) -> Tensor:
    with mpmath.workdps(60):
        return torch.tensor([float(function(mpmath.exp(log_r))) for log_r in log_ratio.tolist()], dtype=torch.float64)


def test_every_choice_is_in_the_table() -> None:
    assert CHOICES.keys() == {file.stem for file in FILES.glob("*.yaml")}


@table
def test_weight_is_r_squared_times_the_second_derivative_of_f(divergence: Divergence, f: Callable[[Any], Any]) -> None:
    """Finite differences in 60 digits, of f as written in the papers."""

    def h(r: Any) -> Any:
        return r**2 * mpmath.diff(f, r, 2, h=r * mpmath.mpf(10) ** -20)

    torch.testing.assert_close(divergence.weight(LOG_R), high_precision(h, LOG_R), rtol=1e-10, atol=0)
    torch.testing.assert_close(divergence.weight(LOG_E), high_precision(h, LOG_E), rtol=1e-12, atol=0)


@table
def test_f(divergence: Divergence, f: Callable[[Any], Any]) -> None:
    torch.testing.assert_close(divergence.f(LOG_R.exp()), high_precision(f, LOG_R), rtol=1e-10, atol=1e-10)


@divergences
def test_weight_is_what_autograd_makes_of_f(divergence: Divergence) -> None:
    """In double precision, over all of r in [1e-6, 1e6].

    Softened reverse KL's f'' ~ r^-3 is a difference of terms ~ r^-2, so that at r = 1e6 six digits are lost.
    """
    rtol = 1e-9 if isinstance(divergence, SoftenedReverseKL) else 1e-12
    by_autograd = CustomDivergence(divergence.f).weight(LOG_R)
    torch.testing.assert_close(by_autograd, divergence.weight(LOG_R), rtol=rtol, atol=0)


@divergences
def test_slope_is_the_derivative_by_log_ratio(divergence: Divergence) -> None:
    log_r = torch.tensor([-20.0, -3.0, 0.0, 0.7, 20.0], dtype=torch.float64)
    step = 1e-3
    h = {k: divergence.weight(log_r + k * step) for k in (-2, -1, 1, 2)}
    finite_difference = (h[-2] - 8 * h[-1] + 8 * h[1] - h[2]) / (12 * step)  # off by h's 5th derivative * step^4 / 30
    slope = divergence.weight_slope(log_r)
    assert not slope.requires_grad
    assert ((slope - finite_difference).abs() <= 1e-10 * divergence.weight(log_r)).all()


def test_slopes_of_the_design() -> None:
    """h - r h' is 0 for forward KL and r^2/(1+r)^2 for Jensen-Shannon."""
    forward, js = ForwardKL(), JensenShannon()
    torch.testing.assert_close(forward.weight_slope(LOG_R), forward.weight(LOG_R), rtol=1e-12, atol=0)
    r = LOG_R.exp()
    torch.testing.assert_close(js.weight(LOG_R) - js.weight_slope(LOG_R), (r / (1 + r)) ** 2, rtol=1e-9, atol=0)


@divergences
def test_finite_in_float32_and_keeps_shape_and_dtype(divergence: Divergence) -> None:
    log_r = torch.linspace(-40, 40, 161)
    weight, slope = divergence.weight(log_r), divergence.weight_slope(log_r)
    for result in (weight, slope):
        assert result.shape == log_r.shape and result.dtype == torch.float32 and result.isfinite().all()
    exact = divergence.weight(log_r.double()).float()
    torch.testing.assert_close(weight, exact, rtol=3e-5, atol=0)
    assert (weight > 0).all()


@divergences
def test_slope_can_be_differentiated_twice(divergence: Divergence) -> None:
    log_r = torch.tensor([-1.0, 0.5], dtype=torch.float64, requires_grad=True)
    if isinstance(divergence, ReverseKL):
        assert divergence.weight_slope(log_r).tolist() == [0, 0]
        return
    assert torch.autograd.gradcheck(divergence.weight_slope, log_r)
    assert torch.autograd.gradgradcheck(divergence.weight_slope, log_r)


@divergences
def test_slope_under_no_grad(divergence: Divergence) -> None:
    log_r = torch.tensor([-1.0, 0.5], dtype=torch.float64, requires_grad=True)
    expected = divergence.weight_slope(log_r).detach()
    with torch.no_grad():
        slope = divergence.weight_slope(log_r)
    assert torch.equal(slope, expected) and not slope.requires_grad


@divergences
def test_only_a_constant_weight_needs_no_ratio(divergence: Divergence) -> None:
    constant = bool((divergence.weight(LOG_R) == 1).all())
    assert divergence.needs_ratio is not constant


@pytest.mark.parametrize("alpha", [2.01, -3.0, float("nan")])
def test_alpha_that_overflows_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha={alpha}: expected a number of at least -2 and at most 2"):
        Alpha(alpha)


def test_custom_divergence_equals_the_built_in_one() -> None:
    custom, built_in = CustomDivergence(JensenShannon().f), JensenShannon()
    log_r = torch.linspace(-10, 10, 21, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(custom.weight(log_r), built_in.weight(log_r), rtol=1e-12, atol=0)
    slope, expected = custom.weight_slope(log_r), built_in.weight_slope(log_r)
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-11)
    curvature, expected_curvature = (torch.autograd.grad(s.sum(), log_r)[0] for s in (slope, expected))
    torch.testing.assert_close(curvature, expected_curvature, rtol=1e-9, atol=1e-11)


def test_custom_divergence_keeps_dtype_and_graph() -> None:
    custom, log_r = CustomDivergence(JensenShannon().f), torch.linspace(-10, 10, 21, requires_grad=True)
    torch.testing.assert_close(custom.weight(log_r), torch.sigmoid(log_r))  # checks the dtype, float32, as well
    assert custom.weight(log_r).requires_grad
    assert not custom.weight(log_r.detach()).requires_grad


def test_custom_divergence_without_a_third_derivative() -> None:
    """f = r^2 has a constant f'', which autograd gives no graph."""
    log_r = torch.tensor([0.0, 1.0], dtype=torch.float64)
    custom = CustomDivergence(lambda r: r**2)
    torch.testing.assert_close(custom.weight(log_r), 2 * (2 * log_r).exp())
    torch.testing.assert_close(custom.weight_slope(log_r), 4 * (2 * log_r).exp())


def test_custom_divergence_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_users_module.py").write_text("def f(r):\n    return r * r.log()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    log_r = torch.tensor([-1.0, 2.0])
    torch.testing.assert_close(CustomDivergence("a_users_module.f").weight(log_r), log_r.exp())


@pytest.mark.parametrize("path", ["no_such_module.f", "math.no_such_function", "f", "", "math.pi"])
def test_custom_divergence_that_cannot_be_imported(path: str) -> None:
    with pytest.raises(ValueError, match="function"):
        CustomDivergence(path)


@pytest.mark.parametrize(
    "f, message",
    [
        (lambda r: r.sum(), r"tensor \[N\]"),
        (lambda r: 3 * r + 1, "affine"),
        (lambda r: r.detach() ** 2, "affine or breaks"),
        (lambda r: r.log(), "convex"),
        (lambda r: float("nan") * r**2, "convex"),
    ],
)
def test_custom_divergence_that_is_none(f: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CustomDivergence(f)

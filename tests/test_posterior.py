"""Distillation of a posterior p(x | y) converges to the computed minimum, by the real loop.

x ~ N(0, 1), y = x + n, n ~ N(0, s^2): the posterior is N(m y, v) with m = 1 / (1 + s^2), v = s^2 / (1 + s^2). The
student is a y + b z. At noise level sigma its law is N(a y, B) with B = b^2 + sigma^2, the posterior's N(m y, V) with
V = v + sigma^2. The loss is ``w E_y D_f(p || q) + lambda E (x - a y - b z)^2``. Here w is the weighting of the level,
sigma^exponent, times ``generator.objective_weight``, and lambda the weight of the reconstruction. The squared error is
``v + (a - m)^2 (1 + s^2) + b^2``, so that a = m for every f, and B minimises ``w D_f + lambda B``:

- reverse KL: ``w / B = w / V + 2 lambda``;
- forward KL: ``2 lambda B^2 + w B = w V``;
- any other: by quadrature.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onestep.build.distillation import distill
from onestep.config import instantiate
from onestep.data.dataset import ImageDataset
from onestep.denoiser import Condition
from onestep.models.generator import Generator
from onestep.noise import expand_like
from onestep.objectives.divergences import Divergence
from tests.helpers.configs import NO_DIAGNOSIS, configure

VARIANCE = 1.0  # s^2
MEAN, POSTERIOR = 1 / (1 + VARIANCE), VARIANCE / (1 + VARIANCE)  # m and v
SIGMA, EXPONENT, WEIGHT = 0.5, 2.0, 0.05  # the level, its weighting, lambda
W = SIGMA**EXPONENT


class Posterior(nn.Module):
    """The exact denoiser ``E[x | x_sigma, y] = (v x_sigma + sigma^2 m y) / (v + sigma^2)``."""

    label_dim, condition_keys, image_shape = 0, ("image",), (1, 1, 1)
    guidance, network_evaluations, denoises_latents, pipeline = 1.0, 1, False, None
    feature_shapes: Sequence[tuple[int, int, int]] = ()
    config: dict[str, Any] = {}  # noqa: RUF012

    def forward(self, x_sigma: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        variance = expand_like(sigma**2, x_sigma)
        return (POSTERIOR * x_sigma + variance * MEAN * condition["image"]) / (POSTERIOR + variance)


class Pairs(ImageDataset):
    """Points x [N, 1, 1, 1] with the condition y, whose sample moments are those of the law."""

    image_shape, label_dim = (1, 1, 1), 0

    def __init__(self, count: int = 2**18) -> None:
        x, n = torch.randn(2, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x = (x - x.mean()) / x.std(correction=0)
        n = n - n.mean() - (n * x).mean() * x
        y = x + n * math.sqrt(VARIANCE) / n.std(correction=0)
        self.x, self.y = (one.float()[:, None, None, None] for one in (x, y))

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Condition]:
        chosen = torch.as_tensor(indices)
        return self.x[chosen], {"image": self.y[chosen]}

    def fingerprint(self) -> str:
        return "gaussian pairs"


def trained(folder: Path, *overrides: str) -> tuple[float, float]:
    """a and b of the student of a run."""
    config = configure(
        "train", "experiment=affine", f"output={folder}", "metrics=[]", *NO_DIAGNOSIS,
        "terms=[reconstruction]", "+generator.network.image_condition=input", "fake_score.network=${generator.network}",
        "objective.normalize_weight=false", f"weighting.exponent={EXPONENT}", f"terms.reconstruction.weight={WEIGHT}",
        *(f"{name}.sigma_min={SIGMA - 1e-4}" for name in ("sigma", "fake_sigma")),
        *(f"{name}.sigma_max={SIGMA + 1e-4}" for name in ("sigma", "fake_sigma")),
        "training.batch_size=1000", "training.warmup_images=0", "training.total_images=200000",
        "optimizer.generator.lr=2.0e-2", "optimizer.fake_score.lr=2.0e-2", "averages.ema.halflife=20000",
        "evaluation.evaluate_teacher=false", "evaluation.grid=16", *overrides,
    )  # fmt: skip
    distill(config, {"teacher": Posterior(), "data": Pairs()})
    generator = Generator.from_pretrained(folder / "generator")
    z, y = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])[:, :, None, None, None].unbind(1)
    with torch.no_grad():
        none, of_y, of_z = generator(z, {"image": y}).flatten().tolist()
    assert abs(none) < 0.01
    return of_y - none, abs(of_z - none)


def computed(divergence: Divergence) -> float:
    """b at the minimum of ``w D_f(p || q) + lambda B``, by quadrature and golden section; float64."""
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    variance = POSTERIOR + SIGMA**2

    def loss(b: float) -> float:
        width = b**2 + SIGMA**2
        log_q = -(x**2) / (2 * width) - math.log(2 * math.pi * width) / 2
        log_p = -(x**2) / (2 * variance) - math.log(2 * math.pi * variance) / 2
        values = log_q.exp() * divergence.f((log_p - log_q).clamp(-60, 60).exp())
        return W * float(torch.trapezoid(values, x)) + WEIGHT * width

    low, high = 0.05, 1.0
    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return (low + high) / 2


def test_the_quadrature_has_the_closed_forms() -> None:
    variance = POSTERIOR + SIGMA**2
    of_reverse = W / (W / variance + 2 * WEIGHT)
    of_forward = (math.sqrt(W**2 + 8 * WEIGHT * W * variance) - W) / (4 * WEIGHT)
    for name, expected in (("reverse_kl", of_reverse), ("forward_kl", of_forward)):
        b = computed(instantiate(configure("train", f"divergence={name}").divergence))
        assert b == pytest.approx(math.sqrt(expected - SIGMA**2), rel=1e-5)


def test_reverse_kl_and_reconstruction(tmp_path: Path) -> None:
    a, b = trained(tmp_path, "divergence=reverse_kl", "discriminator=none")
    expected = math.sqrt(W / (W / (POSTERIOR + SIGMA**2) + 2 * WEIGHT) - SIGMA**2)
    assert [a, b] == pytest.approx([MEAN, expected], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["forward_kl", "jensen_shannon"])
def test_other_divergences_and_reconstruction(divergence: str, tmp_path: Path) -> None:
    a, b = trained(tmp_path, f"divergence={divergence}", "discriminator=points")
    expected = computed(instantiate(configure("train", f"divergence={divergence}").divergence))
    assert [a, b] == pytest.approx([MEAN, expected], rel=0.02)

"""The mixtures of tests/reference/divergence_gradients.json, with quadrature nodes that integrate them to ~1e-12."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onestep.noise import add_noise
from onestep.objectives.base import Objective, Predictions
from onestep.objectives.divergences import (
    Alpha,
    Divergence,
    ForwardKL,
    Jeffreys,
    JensenShannon,
    LeCam,
    NeymanChi2,
    PearsonChi2,
    ReverseKL,
    SoftenedReverseKL,
    SquaredHellinger,
)
from onestep.toy.gaussian_mixture import GaussianMixture
from tests.helpers.paths import REFERENCE

DIVERGENCES: dict[str, Divergence] = {
    "reverse_kl": ReverseKL(),
    "forward_kl": ForwardKL(),
    "jeffreys": Jeffreys(),
    "jensen_shannon": JensenShannon(),
    "softened_reverse_kl": SoftenedReverseKL(),
    "squared_hellinger": SquaredHellinger(),
    "pearson_chi2": PearsonChi2(),
    "neyman_chi2": NeymanChi2(),
    "le_cam": LeCam(),
    "alpha(-0.5)": Alpha(-0.5),
    "alpha(0.3)": Alpha(0.3),
    "alpha(1.5)": Alpha(1.5),
}
CASES = json.loads((REFERENCE / "divergence_gradients.json").read_text())["cases"]
ROWS = [(case, row) for case in CASES for row in case["rows"]]


def as_mixture(parameters: dict[str, list[float]]) -> GaussianMixture:
    weight, mean, std = (torch.tensor(parameters[key], dtype=torch.float64) for key in ("weight", "mean", "std"))
    return GaussianMixture.isotropic(weight, mean[:, None], std)


@dataclass
class Truth:
    """A row of the file: one divergence at one sigma, and the teacher and generator that it was computed for."""

    case: dict[str, Any]
    row: dict[str, Any]

    def __post_init__(self) -> None:
        self.divergence = DIVERGENCES[self.row["divergence"]]
        self.p, self.q = as_mixture(self.case["teacher"]), as_mixture(self.case["generator"])
        generator = self.case["generator"]
        self.mean = torch.tensor(generator["mean"], dtype=torch.float64, requires_grad=True)
        self.std = torch.tensor(generator["std"], dtype=torch.float64, requires_grad=True)
        self.predictions, self.node_weight = self._quadrature(torch.tensor(generator["weight"], dtype=torch.float64))

    def _quadrature(self, component_weight: Tensor) -> tuple[Predictions, Tensor]:
        """Nodes for x = mean_k + std_k z and x_sigma = x + sigma n, with the graph by mean and std, and their weights.

        (z, n) is a rotation of (u, v), u along x_sigma: a loss is an analytic function of u that decays like a
        Gaussian, for which the trapezoid rule converges geometrically, times a polynomial of low degree in v, for which
        five Gauss-Hermite nodes are exact.
        """
        sigma = self.row["sigma"]
        u = torch.linspace(-18, 18, 1001, dtype=torch.float64)
        u_weight = (-u.square() / 2).exp() * (u[1] - u[0]) / math.sqrt(2 * math.pi)
        v_numpy, v_weight_numpy = np.polynomial.hermite_e.hermegauss(5)
        v, v_weight = torch.tensor(v_numpy), torch.tensor(v_weight_numpy / math.sqrt(2 * math.pi))
        scale = (self.std.detach().square() + sigma**2).sqrt()[:, None, None]
        along, across = self.std.detach()[:, None, None] / scale, sigma / scale
        z = along * u[:, None] - across * v
        n = across * u[:, None] + along * v
        weight = component_weight[:, None, None] * u_weight[:, None] * v_weight
        x = self.mean[:, None, None] + self.std[:, None, None] * z
        return self.evaluate(x.reshape(-1, 1), n.reshape(-1, 1)), weight.flatten()

    def evaluate(self, x: Tensor, noise: Tensor) -> Predictions:
        sigma = torch.full(x.shape[:1], self.row["sigma"], dtype=x.dtype)
        x_sigma = add_noise(x, noise, sigma)
        return Predictions(
            x_generated=x,
            x_sigma=x_sigma,
            sigma=sigma,
            x0_teacher=self.p.denoise(x_sigma, sigma),
            x0_fake=self.q.denoise(x_sigma, sigma),
            log_ratio=self.p.log_ratio(self.q, x_sigma, sigma),
        )

    def mean_over_nodes(self, values: Tensor) -> Tensor:
        return (self.node_weight * values.detach()).sum()

    def gradients(self, objective: Objective) -> Tensor:
        """The gradient [2K] of the expected loss by the components' means and standard deviations."""
        losses, _ = objective(self.predictions)
        assert losses is not None
        expected_loss = (self.node_weight * losses).sum()
        return torch.cat(torch.autograd.grad(expected_loss, (self.mean, self.std), retain_graph=True))

    def relative_error(self, gradients: Tensor, prefix: str = "") -> float:
        """Largest absolute difference from the file's gradients over the largest absolute gradient of the row."""
        expected = torch.tensor(self.row[f"{prefix}grad_mean"] + self.row[f"{prefix}grad_std"], dtype=torch.float64)
        return float((gradients - expected).abs().max() / expected.abs().max())


@pytest.fixture(params=ROWS, ids=lambda p: f"{len(p[0]['generator']['mean'])}-{p[1]['divergence']}-{p[1]['sigma']}")
def truth(request: pytest.FixtureRequest) -> Truth:
    """Each row of the reference file."""
    return Truth(*request.param)


@pytest.fixture
def gaussian_pair() -> Truth:
    """Forward KL between two Gaussians at sigma = 0.5."""
    return Truth(*next(p for p in ROWS if p[1]["divergence"] == "forward_kl" and p[1]["sigma"] == 0.5))


@pytest.fixture
def make_world() -> Callable[[dict[str, Any], dict[str, Any]], Truth]:
    """Builds teachers and generators that are not in the file."""
    return Truth

"""The mass of unequal modes in one-step students that are too small for them, by divergence.

    python benchmarks/long_tail_lab.py [--seeds 0 1 2] [--known nothing ratio everything] [--plot FILE] [OVERRIDE ...]

p is a ring of eight modes with weights from 0.43 down to 0.009. The student is a network of 32 units, which cannot
separate them all: it must leave mass between modes or give modes up. It minimises the sum over noise levels of
sigma^2 D_f(p||q), by f-distill without an adversarial term. Of q it knows

- nothing: fake score and ratio are learned, by networks of 128 units;
- ratio: log r is exact in the weights of the divergence, the fake score is learned;
- everything: log r and the score of q are exact.

Exact means those of 1,024 new samples in each update: noise is the kernel of their density, so that it has no bias.
OVERRIDE is a setting of all. Measured on 200,000 samples: the mass of the points nearest to each mode, those within
three standard deviations of one, and the divergences at noise levels, by quadrature on a grid.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from onestep.build.distillation import build_distillation
from onestep.config import compose, instantiate
from onestep.distillation.loop import updates
from onestep.engine.batches import Batches
from onestep.objectives.base import Objective, Predictions
from onestep.objectives.f_distill import FDistill
from onestep.reports.plots import new_figure, save_figure
from onestep.toy.gaussian_mixture import GaussianMixture

MODES, RARE = 8, 4
DIVERGENCES = ("reverse_kl", "jensen_shannon", "forward_kl")
KNOWN = ("nothing", "ratio", "everything")
LEVELS = (0.05, 0.2, 0.8)
KERNELS, SAMPLES = 1024, 200_000
STD = 0.05
OF_LOSS = (0.05, 0.2, 0.4, 0.8, 1.6)  # levels of the second table
END = 2.0  # samples are within


def ring() -> GaussianMixture:
    """Modes on the unit circle, each 0.57 times as heavy as the one before."""
    weights = torch.logspace(math.log10(0.5), math.log10(0.01), MODES)
    angle = torch.arange(MODES) * (2 * math.pi / MODES)
    means = torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture.isotropic(weights / weights.sum(), means, torch.full((MODES,), STD))


class ExactRatio(Objective):
    """f-distill with the exact ratio of ``mixture`` and ``student``, and their exact scores if ``scores`` is True."""

    def __init__(self, objective: FDistill, mixture: GaussianMixture, scores: bool) -> None:
        self.objective, self.mixture, self.needs_fake_score = objective, mixture, not scores
        self.student: Any = None  # once it is built

    def __call__(self, predictions: Predictions) -> tuple[Tensor, dict[str, Tensor]]:
        x_sigma, sigma = predictions.x_sigma.detach(), predictions.sigma
        with torch.no_grad():
            samples = self.student(torch.randn(KERNELS, *self.student.noise_shape)).flatten(1)
            distances = torch.cdist(x_sigma.flatten(1), samples, compute_mode="use_mm_for_euclid_dist")
            kernels = -0.5 * (distances / sigma[:, None]).square()
            log_q = kernels.logsumexp(1) - 2 * (math.sqrt(2 * math.pi) * sigma).log() - math.log(KERNELS)
            log_ratio = self.mixture.log_prob(x_sigma, sigma) - log_q
            x0_fake = predictions.x0_fake
            if not self.needs_fake_score:
                x0_fake = (kernels.softmax(1) @ samples).reshape(x_sigma.shape)
        return self.objective(replace(predictions, log_ratio=log_ratio, x0_fake=x0_fake))


def train(divergence: str, known: str, seed: int, overrides: Sequence[str]) -> Tensor:
    """Samples [SAMPLES, 2] of a student's average."""
    mixture, network = ring(), "_target_:onestep.models.edm.denoiser.EDMDenoiser,image_shape:[2,1,1],sigma_data:0.7"
    settings = ["experiment=mixture", "weighting=power", "generator.gan_weight=0", "metrics=[]", "device=cpu"]
    settings += ["generator.network.options={width:32,depth:1}", "evaluation.best=null", "output=.", f"seed={seed}"]
    settings += [f"training.total_images={300_000}", *overrides]
    if known != "everything":
        options = "architecture:MLP,options:{width:128,depth:2}"
        settings += ["fake_score.steps=3", f"fake_score.network={{{network},{options}}}"]
    given: dict[str, Any] = {"mixture": mixture}
    critic = "points" if known == "nothing" and divergence != "reverse_kl" else "none"
    config = compose("train", [*settings, f"divergence={divergence}", f"discriminator={critic}"])
    if known != "nothing":
        given["objective"] = ExactRatio(instantiate(config.objective), mixture, scores=known == "everything")
        config = compose("train", [*settings, "divergence=reverse_kl", "discriminator=none"])  # it has its own
    parts = build_distillation(config, given)
    if known != "nothing":
        given["objective"].student = parts.student
    settings_, student = parts.settings, parts.student
    batches = Batches(parts.run, settings_, parts.data).start_at(0)
    for iteration, data in enumerate(islice(batches, settings_.iterations)):
        for _ in updates(parts, iteration, parts.run.random(settings_, iteration), data):
            pass
        parts.averages.after_iteration(student, iteration * settings_.batch_size, settings_.batch_size)
    average = next(iter(parts.averages.evaluated(student).values()))
    with torch.no_grad():
        return torch.cat([average(torch.randn(10_000, *average.noise_shape)) for _ in range(SAMPLES // 10_000)])


class Measures(NamedTuple):
    """What is measured on samples.

    Args:
        masses: of the points nearest to each mode, as fractions of its weight.
        rare: of those nearest to the rarest modes together.
        near: the fraction of all samples within three standard deviations of a mode.
        forward, reverse: KL(p||q) and KL(q||p) in nats at each of ``LEVELS``.
    """

    masses: list[float]
    rare: float
    near: float
    forward: list[float]
    reverse: list[float]


def measure(samples: Tensor) -> Measures:
    """The measures of ``samples`` [N, 2]."""
    mixture = ring()
    distance, mode = torch.cdist(samples, mixture.means).min(1)
    weights = mixture.log_weights.exp()
    mass = torch.bincount(mode, minlength=MODES) / len(samples)
    both = [divergences(samples, level) for level in LEVELS]
    return Measures(
        (mass / weights).tolist(), (mass[-RARE:].sum() / weights[-RARE:].sum()).item(),
        (distance < 3 * STD).float().mean().item(),
        [forward for forward, _ in both], [reverse for _, reverse in both],
    )  # fmt: skip


def divergences(samples: Tensor, sigma: float) -> tuple[float, float]:
    """KL(p||q) and KL(q||p) at the level ``sigma``, in nats; q is the law of ``samples`` in cells a fiftieth wide."""
    edges = torch.linspace(-END, END, 201)
    cells = torch.histogramdd(samples.clamp(-END + 1e-3, END - 1e-3), [edges, edges]).hist.double() / len(samples)
    grid = _grid(sigma)
    kernel = torch.distributions.Normal((edges[1:] + edges[:-1]).double() / 2, sigma).log_prob(grid[:, None]).exp()
    return _both(ring(), (kernel @ cells @ kernel.T).clamp_min(1e-300).log(), sigma)


def divergences_of_loss(kept: float, sigma: float) -> tuple[float, float]:
    """KL(p||q) and KL(q||p) at the level ``sigma`` if q has a part ``kept`` of the rarest modes' mass."""
    p = ring()
    weights = p.log_weights.exp()
    weights[-RARE:] *= kept
    stds = p.variances[:, 0].sqrt()
    q = GaussianMixture.isotropic(weights / weights.sum(), p.means, stds).to(dtype=torch.float64)
    points = torch.cartesian_prod(_grid(sigma), _grid(sigma))
    return _both(p, q.log_prob(points, torch.full((len(points),), sigma, dtype=torch.float64)), sigma)


def _grid(sigma: float) -> Tensor:
    """The coordinates of the quadrature in each dimension, float64."""
    return torch.linspace(-END - 5 * sigma, END + 5 * sigma, 400, dtype=torch.float64)


def _both(p: GaussianMixture, log_q: Tensor, sigma: float) -> tuple[float, float]:
    """KL(p||q) and KL(q||p); ``log_q`` is that of the points of the grid."""
    grid, log_q = _grid(sigma), log_q.flatten()
    points = torch.cartesian_prod(grid, grid)
    log_p = p.to(dtype=torch.float64).log_prob(points, torch.full((len(points),), sigma, dtype=torch.float64))
    area, log_r = (grid[1] - grid[0]) ** 2, log_p - log_q
    return (log_p.exp() * log_r).sum().mul(area).item(), (log_q.exp() * -log_r).sum().mul(area).item()


def table_of_loss() -> str:
    """A table in Markdown: the divergences by level if a part of the mass of the rarest modes is lost."""
    lines = [f"| mass kept in the {RARE} rarest modes | {' | '.join(f'sigma {level:g}' for level in OF_LOSS)} |"]
    lines.append(f"| ---: |{' ---: |' * len(OF_LOSS)}")
    for kept in (0.5, 0.1, 0.01):
        pairs = [divergences_of_loss(kept, level) for level in OF_LOSS]
        cells = [f"{forward:.2g} / {reverse:.2g} = {forward / reverse:.2f}" for forward, reverse in pairs]
        lines.append(f"| {kept:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


Results = dict[tuple[str, str], list[Measures]]


def table(results: Results) -> str:
    """A table in Markdown: the mean over seeds, and the least and the largest value."""
    levels = [f"KL(p, q) and KL(q, p) at {level:g}" for level in LEVELS]
    columns = ["modes below half their weight", "mass of the four rarest", "mass near modes", *levels]
    lines = [f"| known of q | divergence | {' | '.join(columns)} |", f"| --- | --- |{' ---: |' * len(columns)}"]
    for (known, divergence), found in results.items():
        numbers = [[float(sum(mass < 0.5 for mass in one.masses)), one.rare, one.near] for one in found]
        cells = [_spread(column) for column in zip(*numbers, strict=True)]
        forward, reverse = [one.forward for one in found], [one.reverse for one in found]
        for level in range(len(LEVELS)):
            both = [statistics.fmean(side[level] for side in sides) for sides in (forward, reverse)]
            cells.append(", ".join(f"{value:.2g}" for value in both))
        lines.append(f"| {known} | {divergence} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(numbers: Sequence[float]) -> str:
    return f"{statistics.fmean(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f})"


def save_plot(results: Results, path: Path) -> None:
    """The mass of each mode as a fraction of its weight, a point for each student."""
    known = list(dict.fromkeys(name for name, _ in results))
    figure = new_figure(figsize=(5 * len(known), 3.5), layout="tight")
    for axis, name in zip(figure.subplots(1, len(known), squeeze=False)[0], known, strict=True):
        rows = {divergence: found for (of, divergence), found in results.items() if of == name}
        for number, (divergence, found) in enumerate(rows.items()):
            masses = torch.tensor([one.masses for one in found])
            x = torch.arange(MODES) + 0.25 * (number - (len(rows) - 1) / 2)
            axis.bar(x, masses.mean(0), 0.22, alpha=0.5, color=f"C{number}", label=divergence)
            for row in masses:
                axis.plot(x, row, ".", color=f"C{number}")
        axis.axhline(1, color="black", linewidth=1)
        axis.set_xticks(range(MODES), [f"{weight:.3f}" for weight in ring().log_weights.exp()], fontsize=8)
        axis.set(title=f"known of q: {name}", xlabel="weight of the mode", ylabel="mass / weight")
        axis.legend(fontsize=8)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--known", choices=KNOWN, nargs="+", default=KNOWN)
    parser.add_argument("--plot", type=Path, help="a file for a picture")
    options = parser.parse_args()
    results: Results = {(known, divergence): [] for known in options.known for divergence in DIVERGENCES}
    for (known, divergence), found in results.items():
        for seed in options.seeds:
            found.append(measure(train(divergence, known, seed, options.overrides).flatten(1)))
            print(known, divergence, seed, found[-1], flush=True)
    print(table(results))
    print(f"KL(p, q) / KL(q, p) if q lacks mass:\n\n{table_of_loss()}")
    if options.plot is not None:
        save_plot(results, options.plot)


if __name__ == "__main__":
    main()

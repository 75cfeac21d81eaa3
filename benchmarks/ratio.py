"""Learned against exact log p/q in the mixture world, by noise level and stage of the training.

    python benchmarks/ratio.py [--student fixed trained] [--critics points ...] [--plot FILE] [OVERRIDE ...]

p is the mixture of experiment=mixture. The student is either of

- fixed: another mixture, with modes that are shifted, wider and of unequal weights, one of them nearly missing. log q
  is exact. Only the critics are trained;
- trained: the generator of experiment=mixture. log q is a kernel density estimate from 200,000 samples. The noise is
  its kernel, so that it has no bias; the difference of two halves estimates its error.

All critics learn in one run, from the same student and the same batches; the first drives the generator. OVERRIDE is a
setting of all. Points are noised samples of the student, where the generator's loss reads the ratio, in four bins of
the noise level with equally many points. In each: the standard deviation of exact log r; the slope of learned on exact
log r, R^2 = 1 - mean squared error / variance, and the root mean squared error. FLOPs are those of the discriminator in
an iteration.
"""

import argparse
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from onestep.build.distillation import build_distillation
from onestep.config import compose
from onestep.denoiser import NO_CONDITION, Condition
from onestep.distillation.loop import updates
from onestep.distillation.parts import Distillation
from onestep.engine.batches import Batches
from onestep.noise import Noised
from onestep.reports.plots import new_figure, save_figure
from onestep.seeding import seeded_rng
from onestep.toy.gaussian_mixture import GaussianMixture

#: The first drives the generator. There is none on the teacher's features, as an exact teacher has none.
CRITICS = ("points", "shared_encoder", "strided_shared_encoder", "channel_mean")
STAGES = {"early": 0.1, "middle": 0.5, "late": 1.0}
BINS = 4
POINTS = 4000
KERNELS = 100_000  # samples in each half of the density estimate


class MixtureStudent(nn.Module):
    """Samples of a ``mixture`` as a student that is not trained. The first of its noises chooses the mode."""

    network_evaluations = 1

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        self.mixture = mixture
        self.noise_shape = (1 + mixture.means.shape[1], 1, 1)
        self.networks: Sequence[nn.Module] = ()
        self.unused = nn.Parameter(torch.zeros(()))  # for the generator's optimiser

    def forward(
        self, latents: Tensor, condition: Condition = NO_CONDITION, noises: Iterator[Tensor] | None = None
    ) -> Tensor:
        choice, *offsets = latents.flatten(1).unbind(1)
        mode = torch.bucketize(torch.special.ndtr(choice), self.mixture.log_weights.exp().cumsum(0)[:-1])
        scaled = self.mixture.variances[mode].sqrt() * torch.stack(offsets, 1)
        return (self.mixture.means[mode] + torch.einsum("bde,be->bd", self.mixture.axes[mode], scaled))[..., None, None]

    def simulate(self, noises: Sequence[Tensor], condition: Condition = NO_CONDITION) -> Tensor:
        samples: Tensor = self(noises[0])
        return samples


def fixed_student() -> MixtureStudent:
    """A law near the grid of 25 modes with the standard deviation 0.05."""
    rng, grid = seeded_rng(7), GaussianMixture.grid(5, 0.5, 0.05)
    weights = 0.25 + 1.5 * torch.rand(25, generator=rng)
    weights[6] = 0.02
    means = grid.means + 0.03 * torch.randn(25, 2, generator=rng)
    stds = 0.05 + 0.05 * torch.rand(25, generator=rng)
    return MixtureStudent(GaussianMixture.isotropic(weights / weights.sum(), means, stds))


def kernel_density(samples: Tensor, x_sigma: Tensor, sigma: Tensor) -> Tensor:
    """The log density [B] at ``x_sigma`` [B, D] of the ``samples`` [N, D] with noise of level ``sigma`` [B]."""
    densities = []
    for x, level in zip(x_sigma.split(10), sigma.split(10), strict=True):
        distance = torch.cdist(x, samples, compute_mode="use_mm_for_euclid_dist")
        log_sum = (-0.5 * (distance / level[:, None]).square()).logsumexp(1)
        densities.append(log_sum - x.shape[1] * (math.sqrt(2 * math.pi) * level).log() - math.log(len(samples)))
    return torch.cat(densities)


class Points(NamedTuple):
    """Samples of the student with noise of increasing level [POINTS], exact log r and the error of its estimate."""

    x: Tensor
    noised: Noised
    exact: Tensor
    doubt: Tensor


@torch.no_grad()
def draw_points(parts: Distillation, seed: int, count: int = POINTS) -> Points:
    """Points of the parts' student."""
    rng, student = seeded_rng(seed, 1), parts.student

    def samples(count: int) -> Tensor:
        generated: Tensor = student(torch.randn(count, *student.noise_shape, generator=rng))
        return generated

    sigma = parts.sigma.quantile((torch.arange(count) + 0.5) / count)
    x = samples(count)
    noised = Noised(sigma, torch.randn(x.shape, generator=rng))
    x_sigma = noised.add_to(x)
    log_p = parts.method.teacher.mixture.log_prob(x_sigma, sigma)
    if isinstance(student, MixtureStudent):
        return Points(x, noised, log_p - student.mixture.log_prob(x_sigma, sigma), torch.zeros(count))
    halves = [kernel_density(samples(KERNELS).flatten(1), x_sigma.flatten(1), sigma) for _ in range(2)]
    log_q = torch.stack(halves).logsumexp(0) - math.log(2)
    return Points(x, noised, log_p - log_q, (halves[0] - halves[1]) / 2)


@torch.no_grad()
def learned_log_ratios(parts: Distillation, points: Points) -> dict[str, Tensor]:
    """The critic's estimates [POINTS]: raw, and normalised by the normaliser of the run."""
    normalizer, noised = parts.method.normalizer, points.noised
    raw = parts.method.logit(points.x, NO_CONDITION, noised)
    return {"": raw} if normalizer is None else {"": raw, ", normalised": normalizer(raw, noised.sigma)}


class Quality(NamedTuple):
    """How well ``learned`` [N] estimates ``exact`` log r [N]."""

    spread: float
    slope: float
    r2: float
    error: float

    @classmethod
    def of(cls, exact: Tensor, learned: Tensor) -> "Quality":
        offset, squared = exact - exact.mean(), (learned - exact).square().mean()
        variance = offset.square().mean()
        slope = (offset * learned).mean() / variance
        return cls(variance.sqrt().item(), slope.item(), 1 - (squared / variance).item(), squared.sqrt().item())


def by_level(exact: Tensor, learned: Tensor) -> list[Quality]:
    """The quality in each bin of the noise level."""
    return [Quality.of(*one) for one in zip(exact.chunk(BINS), learned.chunk(BINS), strict=True)]


def build(critic: str, student: nn.Module | None, overrides: Sequence[str], output: str) -> Distillation:
    """The parts of a run; those of a ``student`` that is not None train the critics alone."""
    settings = [
        "experiment=mixture",
        f"discriminator={critic}",
        "fake_score.steps=3",
        "metrics=[]",
        "evaluation.best=null",
        "device=cpu",
    ]
    alone = [] if student is None else [f"generator.starts_at={2**48}"]
    config = compose("train", [*settings, f"output={output}", *alone, *overrides])
    return build_distillation(config, {} if student is None else {"student": student})


def flops(parts: Distillation) -> int:
    """FLOPs of the discriminator in the critics' updates of an iteration: those with it, less those without."""
    counts = []
    x, sigma = torch.zeros(parts.settings.batch_size, 2, 1, 1), torch.ones(parts.settings.batch_size)
    noised = Noised(sigma, x)
    for method in (parts.method, replace(parts.method, discriminator=None)):
        with FlopCounterMode(display=False) as counter:
            method.critic_losses(x, x, NO_CONDITION, noised, noised).total.backward()
        counts.append(counter.get_total_flops())
    for optimizer in parts.optimizers.values():
        optimizer.discard()
    return (counts[0] - counts[1]) * sum(update.of == "critics" for update in parts.updates)


@torch.no_grad()
def update_normalizer(parts: Distillation, seed: int, iteration: int) -> None:
    """What an update of the generator does, for parts that do not train it."""
    if (normalizer := parts.method.normalizer) is None:
        return
    rng, count = seeded_rng(seed, iteration, 2), parts.settings.batch_size
    x = parts.student(torch.randn(count, *parts.student.noise_shape, generator=rng))
    sigma = parts.sigma.sample(count, rng)
    noised = Noised(sigma, torch.randn(x.shape, generator=rng))
    normalizer.update(parts.method.logit(x, NO_CONDITION, noised), sigma)


class Row(NamedTuple):
    """The estimate of a critic at a stage."""

    student: str
    stage: str
    critic: str
    points: Points
    learned: Tensor


def measure(
    student: str, critics: Sequence[str], overrides: Sequence[str], seed: int, output: str
) -> tuple[list[Row], dict[str, int]]:
    """The estimates of all ``critics`` at each stage of a run, and the FLOPs of each."""
    first, *others = critics
    driver = build(first, fixed_student() if student == "fixed" else None, overrides, output)
    everything = {first: driver, **{name: build(name, driver.student, overrides, output) for name in others}}
    counted = {name: flops(parts) for name, parts in everything.items()}
    stages = {round(share * driver.settings.iterations): stage for stage, share in STAGES.items()}
    batches = Batches(driver.run, driver.settings, driver.data).start_at(0)
    rows = []
    for iteration, data in enumerate(islice(batches, driver.settings.iterations)):
        for parts in reversed(everything.values()):  # the generator moves last
            for _ in updates(parts, iteration, parts.run.random(parts.settings, iteration), data):
                pass
            if parts is not driver or student == "fixed":
                update_normalizer(parts, seed, iteration)
        if stage := stages.get(iteration + 1):
            points = draw_points(driver, seed)
            for name, parts in everything.items():
                for estimate, learned in learned_log_ratios(parts, points).items():
                    if stage == "late" or not estimate:
                        rows.append(Row(student, stage, name + estimate, points, learned))
    return rows, counted


def table(rows: Sequence[Row], levels: Tensor) -> str:
    """A table in Markdown: slope, R^2 and error in each bin, the standard deviation of exact log r above them."""
    bins = [f"sigma {low:.2g} to {high:.2g}" for low, high in pairwise(levels.tolist())]
    lines = [f"| student | stage | log r | {' | '.join(bins)} |", f"| --- | --- | --- |{' ---: |' * BINS}"]
    for number, row in enumerate(rows):
        qualities = by_level(row.points.exact, row.learned)
        if number == 0 or row.points is not rows[number - 1].points:
            doubts = [doubt.square().mean().sqrt().item() for doubt in row.points.doubt.chunk(BINS)]
            spreads = [
                f"std {one.spread:.2f}" + (f" ± {doubt:.3f}" if doubt else "")
                for one, doubt in zip(qualities, doubts, strict=True)
            ]
            lines.append(f"| {row.student} | {row.stage} | exact | {' | '.join(spreads)} |")
        cells = [f"{one.slope:.2f}, {one.r2:.2f}, {one.error:.3f}" for one in qualities]
        lines.append(f"| | | {row.critic} | {' | '.join(cells)} |")
    return "\n".join(lines)


def save_plot(rows: Sequence[Row], levels: Tensor, path: Path) -> None:
    """Learned against exact log r late in each run, by bins of the noise level."""
    late = [row for row in rows if row.stage == "late" and "normalised" not in row.critic]
    students = list(dict.fromkeys(row.student for row in late))
    figure = new_figure(figsize=(3 * BINS, 3 * len(students)), layout="tight")
    grid = figure.subplots(len(students), BINS, squeeze=False)
    for axes, student in zip(grid, students, strict=True):
        shown = [row for row in late if row.student == student]
        for number, axis in enumerate(axes):
            exact = shown[0].points.exact.chunk(BINS)[number]
            ends = exact.quantile(torch.tensor([0.002, 0.998])).tolist()
            for row in reversed(shown):
                axis.scatter(exact, row.learned.chunk(BINS)[number], s=2, alpha=0.5, label=row.critic)
            axis.plot(ends, ends, color="black", linewidth=1)
            axis.set(xlim=ends, ylim=ends)
            axis.set_title(f"{student} student, sigma {levels[number]:.2g} to {levels[number + 1]:.2g}", fontsize=9)
        axes[0].set_ylabel("learned log r")
        axes[0].legend(markerscale=4, fontsize=8)
    for axis in grid[-1]:
        axis.set_xlabel("exact log r")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--student", choices=("fixed", "trained"), nargs="+", default=["fixed", "trained"])
    parser.add_argument("--critics", nargs="+", default=CRITICS, help="choices of discriminator; the first drives")
    parser.add_argument("--total-images", type=int, default=600_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="a file for a picture")
    options = parser.parse_args()
    overrides = [f"training.total_images={options.total_images}", f"seed={options.seed}", *options.overrides]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as output:
        for student in options.student:
            found, counted = measure(student, options.critics, overrides, options.seed, output)
            rows += found
    sigma = rows[0].points.noised.sigma
    levels = torch.cat([*(chunk[:1] for chunk in sigma.chunk(BINS)), sigma[-1:]])
    print(table(rows, levels))
    print("MFLOP of the discriminator in an iteration: " + ", ".join(f"{n} {c / 1e6:.0f}" for n, c in counted.items()))
    if options.plot is not None:
        save_plot(rows, levels, options.plot)


if __name__ == "__main__":
    main()

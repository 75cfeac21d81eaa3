"""Instruments of a distillation: how far the generator is from its target, and what the critics know of that.

A diagnosis looks at noised samples of the generator, at held-out real images and at images of the training, at noise
levels stratified by the law of the generator's loss. It has random numbers of its own and leaves all networks as they
were: a training is the same with and without it. docs/diagnosis.md explains the values.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from onestep.data.dataset import Batch, NoData
from onestep.denoiser import Condition, map_condition
from onestep.distillation.parts import Distillation
from onestep.distillation.refit import refitted
from onestep.distillation.schedule import batches_per_iteration
from onestep.distillation.spread import Spread
from onestep.engine.batches import Batches
from onestep.models.steps import set_step
from onestep.noise import Noised
from onestep.objectives.denoising import denoising_loss, error_weight
from onestep.objectives.ratio_quality import effective_fraction, jensen_shannon_bound, kl_bounds, ratio_means
from onestep.precision import without_bf16
from onestep.processes import gather_rows
from onestep.seeding import BatchRandom, seeded_rng

#: Of the values in the log.
PREFIX = "diagnosis/"
#: Bins of the noise level, of equally many samples.
BINS = 4
_OF_DISCRIMINATOR = ("real", "generated", "log_ratio")
_STREAM = 5  # the random stream of a diagnosis; 1 to 4 are those of the training
_REFIT_STEPS = 8  # of the fake score


@dataclass
class Samples:
    """Samples [b, ...] of the generator after a step, their condition, and the noise with which they are looked at."""

    x: Tensor
    condition: Condition
    noised: Noised
    step: int  # counted from 0


class Diagnosis:
    """Measures a distillation after an iteration. Every process must call it.

    It draws whole batches of the training's size, in micro-batches like those: as much memory suffices, and the values
    depend neither on the number of processes nor on that of micro-batches.

    Args:
        parts: of the distillation.
    """

    def __init__(self, parts: Distillation) -> None:
        self.parts, self.method, self.run = parts, parts.method, parts.run
        self.levels = level_names(parts.sigma.quantile((torch.arange(BINS) + 0.5) / BINS).tolist())
        self.spread = Spread(parts)
        self.held_out: Sequence[int] = [] if isinstance(parts.data, NoData) else parts.data.held_out
        self.data = Batches(self.run, parts.settings, parts.data, batches_per_iteration(parts.updates))
        batches = -(-parts.diagnosis.samples // parts.settings.batch_size)
        self.batches = max(batches, parts.student.network_evaluations) if batches else 0

    def __call__(self, iteration: int) -> dict[str, float]:
        """The values by name; those of a bin end in its middle level, such as ``jensen_shannon/0.12``.

        A value is left out if the method has no such part, and all are without ``diagnosis.samples``.

        Raises:
            StopRequestedError: after a signal, in all processes.
        """
        if not self.batches:
            return {}
        return summarize(self._columns(iteration), self.levels, self.method.view.noise_level) | self.spread()

    @torch.no_grad()
    def _columns(self, iteration: int) -> dict[str, Tensor]:
        """What is measured of each sample [N], in every process; see :func:`summarize`."""
        batch_size = self.parts.settings.batch_size
        order = torch.randperm(
            self.batches * batch_size, generator=seeded_rng(self.run.seed, 0, iteration, _STREAM)
        ).view(self.batches, batch_size)
        drawn: list[Samples] = []
        columns: list[dict[str, Tensor]] = []
        for number in range(self.batches):
            random = self._random(iteration, number)
            place = (order[number, random.rows].to(self.run.device) + random.uniform(())) / order.numel()
            x_seen, condition = self._training_batch(iteration, number)
            of_step = self.parts.sigma.at_step(self._step(number))
            sigma = of_step.quantile(place)
            samples = self._generate(number, random, sigma, condition)
            if of_step is not self.parts.sigma:  # the bins are of all steps' levels
                place = self.parts.sigma.cdf(sigma)
            noise = random.normal(samples[0].x.shape[1:])
            held_out = self._images(range(number * batch_size, (number + 1) * batch_size)[random.rows])
            values = (place, x_seen, condition, noise, *held_out)
            for one, (places, *of_real) in zip(samples, self.parts.split(*values), strict=True):
                found = {"bin": (places * BINS).floor().clamp(max=BINS - 1), **self._look(one)}
                if self.method.discriminator is not None and self.held_out:
                    found |= self._compare(one.noised.sigma, *of_real)
                columns.append(found)
            drawn += samples
            self.run.check_stop()
        if self.method.fake_score is not None:
            for found, loss in zip(columns, self._losses_of_refit(iteration, drawn), strict=True):
                found["refitted_loss"] = loss
        table = torch.stack([torch.cat([found[name].float() for found in columns]) for name in columns[0]], 1)
        return dict(zip(columns[0], gather_rows(table, self.run.device).cpu().double().unbind(1), strict=True))

    def _random(self, iteration: int, number: int) -> BatchRandom:
        return self.run.random(self.parts.settings, iteration, _STREAM, number)

    def _step(self, number: int) -> int:
        """The generator's step of a batch, counted from 0: by turns, as the critics are trained on all."""
        return number % self.parts.student.network_evaluations

    def _training_batch(self, iteration: int, number: int) -> Batch:
        """One of the last batches of the training."""
        data = self.parts.data
        if isinstance(data, NoData):
            return data.batch(self._random(iteration, self.batches + _REFIT_STEPS + number))
        before, of_iteration = divmod(number, self.data.per_iteration)
        return self._read(self.data.indices(max(0, iteration - 1 - before), of_iteration) or [])

    def _images(self, rows: Sequence[int]) -> tuple[Tensor | None, Tensor | None, Condition]:
        """For each of ``rows`` the number of a held-out image, the image and its condition."""
        if not self.held_out or self.method.discriminator is None:
            return None, None, {}
        numbers = [row % len(self.held_out) for row in rows]
        return torch.tensor(numbers, device=self.run.device), *self._read([self.held_out[one] for one in numbers])

    def _read(self, indices: Sequence[int]) -> Batch:
        assert not isinstance(self.parts.data, NoData)
        images, condition = self.parts.data.__getitems__(indices)
        device = self.run.device
        return None if images is None else images.to(device), map_condition(lambda one: one.to(device), condition)

    def _generate(self, number: int, random: BatchRandom, sigma: Tensor, condition: Condition) -> list[Samples]:
        """Micro-batches of one of the generator's steps."""
        student = self.parts.student
        step = self._step(number)
        noises = [random.normal(student.noise_shape) for _ in range(step + 1)]
        condition = self.parts.condition_of_samples(condition, random)
        inputs = self.parts.split(condition, *noises)
        samples = [self.parts.simulate(latents, given, keep_graph=False) for given, *latents in inputs]
        noise = random.normal(samples[0].shape[1:])
        split = zip(samples, self.parts.split(condition, sigma, noise), strict=True)
        return [Samples(x, given, Noised(*noised), step) for x, (given, *noised) in split]

    def _look(self, samples: Samples) -> dict[str, Tensor]:
        """What the critics say of generated samples."""
        set_step(self.method.fake_score, samples.step)
        found: dict[str, Tensor] = {}
        if self.method.fake_score is not None:
            found |= self._predict(samples)
        if self.method.discriminator is not None:
            found |= self._judge(samples)
        return found

    def _predict(self, samples: Samples) -> dict[str, Tensor]:
        """The fake score's loss, and the squared distance of its noise prediction from the teacher's, per dimension."""
        x0_fake, loss = self._denoise(samples)
        x_sigma, sigma = samples.noised.add_to(samples.x), samples.noised.sigma
        with self.run.generator_autocast(), without_bf16(self.method.teacher, x_sigma.device):
            x0_teacher = self.method.teacher(x_sigma, sigma, samples.condition)
        return {"loss": loss, "squared_gap": (x0_teacher - x0_fake).square().flatten(1).mean(1) / sigma**2}

    def _denoise(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """The fake score's x0-prediction, and its losses [b]."""
        fake_score, sigma = self.method.fake_score, samples.noised.sigma
        assert fake_score is not None
        set_step(fake_score, samples.step)
        with self.run.generator_autocast(), without_bf16(fake_score, sigma.device):
            x0_fake = fake_score(samples.noised.add_to(samples.x), sigma, samples.condition)
        weight = error_weight(fake_score, sigma, self.method.error_weight)
        return x0_fake, denoising_loss(x0_fake, samples.x, weight)

    def _losses_of_refit(self, iteration: int, drawn: Sequence[Samples]) -> list[Tensor]:
        """The fake score's losses on the samples after a short training on other ones."""

        def fresh() -> Iterator[list[Samples]]:
            for step in range(_REFIT_STEPS):
                number = self.batches + step
                random = self._random(iteration, number)
                _, condition = self._training_batch(iteration, step)
                sigma = random.sigma(self.parts.sigma.at_step(self._step(number)))
                yield self._generate(number, random, sigma, condition)

        assert self.method.fake_score is not None
        with refitted(self.method.fake_score, fresh(), lambda samples: self._denoise(samples)[1]):
            return [self._denoise(samples)[1] for samples in drawn]

    def _judge(self, samples: Samples) -> dict[str, Tensor]:
        """The discriminator's log p/q of generated samples, normalised too, and their weight by the divergence."""
        with self.run.generator_autocast():
            logit = self.method.logit(samples.x, samples.condition, samples.noised)
        objective, normalizer = self.method.objective, self.method.normalizer
        # A copy, as the published normaliser changes its means at each call.
        log_ratio = logit if normalizer is None else copy.deepcopy(normalizer)(logit, samples.noised.sigma)
        found = {"generated": logit, "log_ratio": log_ratio}
        if objective.needs_ratio and hasattr(objective, "divergence"):
            found["weight"] = objective.divergence.weight(log_ratio)
        return found

    def _compare(
        self, sigma: Tensor, x_seen: Tensor, condition: Condition, noise: Tensor, number: Tensor, x_real: Tensor,
        condition_real: Condition,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The discriminator's log p/q of held-out images and of training images with the same noise."""
        noised = Noised(sigma, noise)
        with self.run.generator_autocast():
            real = self.method.logit(x_real, condition_real, noised)
            seen = self.method.logit(x_seen, condition, noised)
        return {"image": number, "real": real, "seen": seen}


def level_names(levels: Sequence[float]) -> list[str]:
    """The ``levels`` with two digits, such as 0.12 and 80; numbered from 1 where these are equal."""
    names = [f"{float(f'{level:.2g}'):g}" for level in levels]
    return names if len({*names}) == len(names) else [str(number) for number in range(1, len(names) + 1)]


def summarize(
    columns: Mapping[str, Tensor], levels: Sequence[str], noise_level: float | None = None
) -> dict[str, float]:
    """The values of a diagnosis without the spread, by name.

    Args:
        columns: of each sample [N], float64: its ``bin``; of a fake score its ``loss``, ``refitted_loss`` and
            ``squared_gap``; of a discriminator its log p/q of the ``generated`` sample, the normalised ``log_ratio``
            and the ``weight``, and its log p/q of the ``real`` held-out image ``image`` and of one ``seen``.
        levels: the names of the bins.
        noise_level: of all samples that the discriminator sees, whose values then are of one bin; None for the levels.
    """
    own = {} if noise_level is None else {name: columns[name] for name in _OF_DISCRIMINATOR if name in columns}
    values = {f"{name}/{noise_level:g}": float(value) for name, value in _of_bin(own).items()}
    for number, level in enumerate(levels):
        of_bin = {name: column[columns["bin"] == number] for name, column in columns.items() if name not in own}
        if len(of_bin["bin"]):
            values |= {f"{name}/{level}": float(value) for name, value in _of_bin(of_bin).items()}
    if "loss" in columns:
        before, after = columns["loss"].mean(), columns["refitted_loss"].mean()
        values["fake_score_lag"] = float(1 - after / before)
    if "real" in columns:
        difference = softplus(-columns["real"]) - softplus(-columns["seen"])
        of_images = torch.stack([difference[columns["image"] == image].mean() for image in columns["image"].unique()])
        values["overfitting"] = float(of_images.mean())
        values["overfitting_error"] = float(of_images.std(correction=1)) / math.sqrt(len(of_images))
    return values


def _of_bin(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of the samples of one bin."""
    values: dict[str, Tensor] = {}
    if "real" in columns:
        real, generated = columns["real"], columns["generated"]
        values["jensen_shannon"] = jensen_shannon_bound(real, generated)
        values["forward_kl"], values["reverse_kl"] = kl_bounds(real, generated)
        values["ratio_mean"], values["inverse_ratio_mean"] = ratio_means(real, generated)
    if "log_ratio" in columns:
        values["log_ratio_size"] = columns["log_ratio"].abs().median()
    if "weight" in columns:
        values["effective_samples"] = effective_fraction(columns["weight"])
        for percent in (10, 90):
            values[f"weight_{percent}"] = columns["weight"].quantile(percent / 100)
    if "loss" in columns:
        values["score_gap"] = columns["squared_gap"].mean().sqrt()
    return values
